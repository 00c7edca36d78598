#!/bin/bash
# Installs, by apt on Debian 12, what stoker's build and tests need beyond Go, gcc, git and make. Installs only what is
# missing, asks the network for nothing when nothing is, and removes nothing.
#
# Usage: packaging/setup.sh generate|demo|vm|packages|kernels|test|bench|real
set -euo pipefail

# clang-19 and llvm-19 compile the BPF programs (the version is pinned: the objects are committed and compared byte by
# byte), libbpf-dev has their headers, bpftool writes vmlinux.h.
generate=(clang-19 llvm-19 libbpf-dev bpftool)
# The demo runs real containers: containerd and runc run them, busybox and small C++ programs are in them.
demo=(containerd runc busybox-static g++)
# Virtual machines (test/vm) are emulated by QEMU; their root is a Debian tree in an ext4 image, their first disk's drivers are
# sorted by kmod and unpacked by xz.
vm=(qemu-system-x86 busybox-static kmod debootstrap e2fsprogs xz-utils util-linux)
# Kernels of arm64 run in an emulated machine of that kind (package vm), where the tests' own compilers are.
kernels=("${vm[@]}" qemu-system-arm)
# Packages are read by the linters of Debian and of the rpm world, unpacked by rpm, and installed in a virtual machine; the exposure of
# the unit is systemd-analyze's to say.
packages=("${vm[@]}" lintian rpmlint rpm cpio systemd)
# The browser tests drive Chromium; setpriv (util-linux) takes capabilities away in the tests of degradation; ps (procps)
# shows what a test left behind; tests of Docker start a dockerd of their own, those of Podman run podman with conmon, and crun
# for what runc cannot; xz packs MiniDebugInfo as distributions do, and dwz supplementary debug files. Unwind rows are proven on
# programs of musl, which have no call frame information, and on OpenSSL's libcrypto, whose is the oddest; whole stacks on
# openssl, sqlite3 and xz. The commands of docs/api.md are typed as they stand there: curl. Python's offsets are held against a live
# interpreter: python3, and ruby.
test=("${generate[@]}" "${demo[@]}" "${vm[@]}" "${packages[@]}" "${kernels[@]}" chromium util-linux procps docker.io podman conmon crun xz-utils dwz musl-tools libssl3 openssl sqlite3 curl python3 ruby)
# The benchmark compares with perf and bpftrace on the same load, and measures the unwind tables of small and of very large files:
# Node.js and libLLVM.
bench=("${demo[@]}" linux-perf bpftrace nodejs libllvm14)
# Real programs (make real) run by podman in a Debian tree that debootstrap makes; perf and gdb look at them too, musl-gcc builds two.
real=(podman conmon runc debootstrap linux-perf gdb musl-tools)

case "${1-}" in
generate) want=("${generate[@]}") ;;
demo) want=("${demo[@]}") ;;
vm) want=("${vm[@]}") ;;
packages) want=("${packages[@]}") ;;
kernels) want=("${kernels[@]}") ;;
test) want=("${test[@]}") ;;
bench) want=("${bench[@]}") ;;
real) want=("${real[@]}") ;;
*)
	echo "usage: $0 generate|demo|vm|packages|kernels|test|bench|real" >&2
	exit 2
	;;
esac

# Builds of Node.js come from the npm registry; whoever has npm from elsewhere than Debian keeps it.
if [[ $1 == test ]] && ! command -v npm >/dev/null; then
	want+=(npm)
fi
nodejs() {
	if [[ $1 == test ]]; then
		"$(dirname "${BASH_SOURCE[0]}")/../test/nodejs/fetch.sh" >/dev/null
	fi
}

if ! command -v dpkg-query >/dev/null; then
	echo "setup: this machine has no dpkg. Install these yourself, by the names your distribution gives them: ${want[*]}" >&2
	exit 1
fi
missing=()
for p in "${want[@]}"; do
	if [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) != installed ]]; then
		missing+=("$p")
	fi
done
if ((${#missing[@]} == 0)); then
	nodejs "$1"
	exit 0
fi
if ((EUID != 0)); then
	echo "setup: missing packages: ${missing[*]}. Run as root: apt-get install ${missing[*]}" >&2
	exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# retry COMMAND…: networks fail for a moment; three tries, the output only when the last one failed.
retry() {
	local try
	for try in 1 2 3; do
		if DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1 </dev/null; then
			return 0
		fi
		echo "setup: try $try of 3 failed: $*" >&2
		sleep $((try * 3))
	done
	cat "$log" >&2
	return 1
}

echo "setup: installing ${missing[*]}"
echo "setup: apt-get update"
if ! retry apt-get update -q -o DPkg::Lock::Timeout=120; then
	echo "setup: apt-get update failed; check the network and /etc/apt/sources.list" >&2
	exit 1
fi
for p in "${missing[@]}"; do
	echo "setup: apt-get install $p"
	if ! retry apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "$p"; then
		echo "setup: $p could not be installed. stoker's setup knows Debian 12; elsewhere install it by hand and try again." >&2
		exit 1
	fi
done
nodejs "$1"
echo "setup: done"
