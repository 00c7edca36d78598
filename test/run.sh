#!/bin/bash
# Runs the lanes of `make test` one after the other, each within a stated budget, and says for each what it took.
# A lane that fails does not stop the others; the exit code is 1 if any failed. Nothing is skipped: a lane that needs root
# and does not have it is an error.
#
# Usage: test/run.sh LANE…
set -euo pipefail
cd "$(dirname "$0")/.."

GO=${GO:-go}
# Seconds a lane may take on 2 cores with cold caches. Measured times are about a third; CI has 75 minutes for all.
declare -A budget=([generate]=120 [lint]=300 [unit]=300 [race]=480 [root]=660 [browser]=180 [e2e]=840 [vm]=780 [demo]=150 [packages]=450 [kernels]=420)
# What a lane is for, in one line.
declare -A about=(
	[generate]="the committed BPF objects are what clang-19 makes of the sources"
	[lint]="gofmt, go vet, staticcheck"
	[unit]="tests without root, fuzz seeds included"
	[race]="the same under the race detector"
	[root]="BPF programs in this kernel, real containerd, Docker and Podman"
	[browser]="the web UI in headless Chromium"
	[e2e]="the built agent on containers of known truth"
	[vm]="services, user units, machines and engines under systemd, in an emulated machine"
	[demo]="make demo, twice"
	[kernels]="the kernel side in Debian's 6.1 and 6.12 on amd64 and arm64, in emulated machines"
	[packages]="deb, rpm and tarball: reproducible, linted, installed, upgraded and purged in an emulated machine"
)

if ! command -v "$GO" >/dev/null; then
	echo "test: no Go in PATH; install Go ($(awk '$1 == "go" {print $2}' go.mod) or newer) and try again, or set GO=/path/to/go" >&2
	exit 2
fi

# tagged TAG: the packages that have test files only under the build tag TAG.
tagged() {
	comm -13 \
		<("$GO" list -f '{{range .TestGoFiles}}{{$.ImportPath}} {{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$.ImportPath}} {{.}}{{"\n"}}{{end}}' ./... | sed '/^$/d' | sort) \
		<("$GO" list -tags "$1" -f '{{range .TestGoFiles}}{{$.ImportPath}} {{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$.ImportPath}} {{.}}{{"\n"}}{{end}}' ./... | sed '/^$/d' | sort) |
		cut -d' ' -f1 | sort -u
}

need_root() {
	if ((EUID != 0)); then
		echo "needs root: it loads BPF programs and starts containers. Run: sudo -E make test" >&2
		return 1
	fi
}

# state: what lanes that start daemons and load programs could leave behind.
state() {
	{
		find /tmp /var/lib -maxdepth 1 -type d -name 'stoker-*'
		awk '$5 ~ /stoker/ {print "mount " $5}' /proc/self/mountinfo
		find /sys/fs/cgroup -type d \( -name 'stoker-*' -o -path '*/docker/*' -o -path '*/kubepods/*' -o -path '*/libpod_parent/*' \) 2>/dev/null
		ps -eo pid=,comm= | awk '$2 ~ /^(containerd|containerd-shim|dockerd|podman|conmon|runc|crun|stoker|demo|qemu-system)/ {print "process " $1 " " $2}'
		bpftool prog show 2>/dev/null | awk '/ name (sample|unwind|process_exec|process_exit) / {print "BPF program " $1 " " $4}'
	} | sort
}

# leaves_nothing COMMAND…: runs it and fails if something is left that was not there before. The kernel takes a moment to let
# go of programs, so it gets one.
leaves_nothing() {
	local before left try
	before=$(state)
	"$@"
	for try in {1..50}; do
		left=$(comm -13 <(echo "$before") <(state))
		[[ -z $left ]] && return 0
		sleep 0.2
	done
	echo "left behind:" >&2
	echo "$left" >&2
	return 1
}

# generated: the files that `go generate` writes, with their contents' hashes.
generated() {
	find bpf test -name '*_bpfel.go' -o -name '*_bpfel.o' | sort | xargs -r sha256sum
}

lane_generate() {
	local before after dir line
	# Every package that asks for an object has one, committed. Without this a forgotten `git add` passes here and breaks
	# everybody else's build.
	while IFS=: read -r file line; do
		dir=$(dirname "$file")
		if [[ -d .git ]] && ! git ls-files --error-unmatch "$dir"/*_bpfel.o >/dev/null 2>&1; then
			echo "$file asks for BPF objects and $dir has none committed. Run: make generate && git add $dir" >&2
			return 1
		fi
	done < <(grep -rn --include='*.go' '^//go:generate .*bpf2go' . | cut -d: -f1,2)
	before=$(generated)
	"$GO" generate ./...
	after=$(generated)
	if [[ $before != "$after" ]]; then
		diff <(echo "$before") <(echo "$after") >&2 || true
		echo "the generated files differ from what the sources give with $(clang-19 --version | head -1). Commit them as they are now." >&2
		return 1
	fi
	if [[ -d .git ]]; then
		local untracked
		untracked=$(git ls-files --others --exclude-standard -- 'bpf/**_bpfel.*' 'test/**_bpfel.*')
		if [[ -n $untracked ]]; then
			echo "generated and not committed: $untracked" >&2
			return 1
		fi
	fi
}

lane_lint() {
	local unformatted tags
	unformatted=$(find . -name '*.go' -not -path './.git/*' -not -name '*_bpfel.go' -print0 | xargs -0 gofmt -s -l)
	if [[ -n $unformatted ]]; then
		echo "gofmt -s -w these:" $unformatted >&2
		return 1
	fi
	# Files under a build tag are compiled only with it: without the second pass nobody would read them.
	for tags in "" root,browser vm,guest; do
		"$GO" vet -tags "$tags" ./...
	done
	"$GO" tool staticcheck ./...
	"$GO" tool staticcheck -tags root,browser ./...
	"$GO" vet -tags kernels ./test/vm
	"$GO" tool staticcheck -tags kernels ./test/vm
	# Tests in the virtual machine use some of the helpers of those on this machine: what nobody uses was seen above.
	"$GO" tool staticcheck -tags vm,guest -checks inherit,-U1000 ./test/...
	local script
	for script in .ci/run packaging/*.sh packaging/deb/*.p* packaging/rpm/*.p* test/*.sh test/vm/*.sh; do
		bash -n "$script"
	done
}

lane_unit() {
	CGO_ENABLED=0 "$GO" test -timeout "$((budget[unit] - 20))s" ./...
}

lane_race() {
	# Only packages with goroutines of their own; the detector makes the others ten times slower for nothing. It needs cgo.
	local bpf
	bpf=$("$GO" list ./bpf/... | grep -v -e /unwind/native/cfi$ -e /unwind/native/replay)
	# shellcheck disable=SC2086 # a list
	CGO_ENABLED=1 "$GO" test -race -timeout "$((budget[race] - 20))s" ./cmd/... ./hook/... ./internal/... ./runtime/... ./labeler/... ./sink/... $bpf
}

lane_root() {
	need_root
	# -p 1: packages share this machine's cgroups, its CPUs and perf events. -count=1: a cached result says nothing about
	# this kernel.
	local packages
	packages=$(tagged root | grep -v '/test/e2e$')
	# shellcheck disable=SC2086 # one argument per package
	leaves_nothing env CGO_ENABLED=0 "$GO" test -tags root -p 1 -count=1 -timeout "$((budget[root] - 20))s" $packages
}

lane_browser() {
	tagged browser | CGO_ENABLED=0 xargs "$GO" test -tags browser -p 1 -count=1 -timeout "$((budget[browser] - 20))s"
}

lane_e2e() {
	need_root
	leaves_nothing env CGO_ENABLED=0 "$GO" test -tags root -count=1 -timeout "$((budget[e2e] - 20))s" ./test/e2e
}

lane_vm() {
	need_root
	# -v: one boot takes minutes; what goes on in it is seen as it does.
	leaves_nothing env CGO_ENABLED=0 "$GO" test -tags vm -v -count=1 -timeout "$((budget[vm] - 20))s" ./test/vm
}

lane_kernels() {
	need_root
	# shellcheck disable=SC2086 # flags, or none
	leaves_nothing env CGO_ENABLED=0 "$GO" test -tags kernels -v -count=1 -timeout "$((budget[kernels] - 20))s" ./test/vm -run '^TestKernels$' ${KERNELS-}
}

lane_demo() {
	need_root
	local n
	for n in 1 2; do
		leaves_nothing env DEMO_SECONDS=20 make demo
	done
}

lane_packages() {
	need_root
	leaves_nothing env CGO_ENABLED=0 "$GO" test -tags vm -v -count=1 -timeout "$((budget[packages] - 20))s" ./test/packages
}

# One lane in a process of its own, so that `timeout` can end it with all it started.
if [[ ${1-} == --lane ]]; then
	"lane_$2"
	exit
fi

if (($# == 0)); then
	echo "usage: $0 LANE…, lanes: ${!budget[*]}" >&2
	exit 2
fi

running=
trap '[[ -n $running ]] && kill -TERM "$running" 2>/dev/null; exit 130' INT TERM
failed=() summary=()
for lane in "$@"; do
	if [[ -z ${budget[$lane]-} ]]; then
		echo "test: no lane is called $lane; there are: ${!budget[*]}" >&2
		exit 2
	fi
	printf '=== %s: %s (budget %d s)\n' "$lane" "${about[$lane]}" "${budget[$lane]}"
	start=$SECONDS code=0
	timeout --kill-after=30 "${budget[$lane]}" "$0" --lane "$lane" </dev/null &
	running=$!
	wait "$running" || code=$?
	running=
	took=$((SECONDS - start))
	case $code in
	0) word=ok ;;
	124 | 137) word="FAILED: over budget" ;;
	*) word="FAILED: exit code $code" ;;
	esac
	((code == 0)) || failed+=("$lane")
	summary+=("$(printf '%-10s budget %4d s  took %4d s  %s' "$lane" "${budget[$lane]}" "$took" "$word")")
	echo "--- ${summary[-1]}"
done
printf '%s\n' "" "${summary[@]}"
if ((${#failed[@]})); then
	echo "failed: ${failed[*]}"
	exit 1
fi
echo "all lanes passed in $SECONDS s"
