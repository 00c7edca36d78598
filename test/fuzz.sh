#!/bin/bash
# Runs every fuzz target of the repository for FUZZ_SECONDS (10) each. Stops at the first that finds something; the input
# is then in the package's testdata/fuzz, ready to become a regression test.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
seconds=${FUZZ_SECONDS:-10}
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
	"$GO" test -list '^Fuzz' "$dir" | grep '^Fuzz' | while read -r target; do
		echo "=== $dir $target, $seconds s"
		"$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "${seconds}s" -fuzzminimizetime 10x "$dir" </dev/null
	done
done
