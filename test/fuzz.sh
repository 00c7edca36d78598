#!/bin/bash
# Runs every fuzz target of the repository for FUZZ_SECONDS (60) each. Stops at the first that finds something; the input
# is then in the package's testdata/fuzz, ready to become a regression test. What made a target go another way is kept in Go's cache, for the
# next run to go on from.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
seconds=${FUZZ_SECONDS:-60}
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do
	"$GO" test -list '^Fuzz' "$dir" | grep '^Fuzz' | while read -r target; do
		echo "=== $dir $target, $seconds s"
		"$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "${seconds}s" -fuzzminimizetime 10x "$dir" </dev/null
	done
done
