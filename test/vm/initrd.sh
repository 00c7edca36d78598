#!/bin/bash
# Makes the initial RAM disk of a guest of package vm: busybox, an init, and those modules of a kernel package that it needs to find
# its disks, in the order in which they load. depmod finds that order: it changes between updates of one kernel.
#
# Usage: initrd.sh KERNEL INIT BUSYBOX OUT MODULE…       KERNEL is an unpacked kernel package
set -euo pipefail
kernel=$1 init=$2 busybox=$3 out=$4
shift 4
version=$(basename "$kernel"/lib/modules/*)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir"/{bin,m,proc,sys,dev,newroot}
install -m755 "$init" "$dir/init"
install -m755 "$busybox" "$dir/bin/busybox"
depmod -b "$kernel" "$version"
: >"$dir/modules"
for module in "$@"; do
	# What is built in prints "builtin"; what the kernel does not know at all is an error.
	modprobe -d "$kernel" -S "$version" --show-depends "$module" >"$dir/depends"
	while read -r word file _; do
		name=$(basename "${file%.xz}")
		[[ $word == insmod && ! -e $dir/m/$name ]] || continue
		case $file in
		*.xz) xz -dc "$file" >"$dir/m/$name" ;;
		*) cp "$file" "$dir/m/$name" ;;
		esac
		echo "/m/$name" >>"$dir/modules"
	done <"$dir/depends"
done
rm "$dir/depends"
(cd "$dir" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$out"
