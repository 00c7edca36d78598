#!/bin/bash
# Makes a Debian 12 tree as an ext4 image of packages that are unpacked and no more, for guests of package vm without systemd: of any
# processor, for nothing of it is run here. Needs root, debootstrap and e2fsprogs.
#
# Usage: bare.sh DIRECTORY MIRROR PACKAGE,… ARCHITECTURE      makes DIRECTORY/root.ext4, in place of all else in DIRECTORY
set -euo pipefail
dir=$1 mirror=$2 packages=$3 arch=$4
root=$dir/root
export LC_ALL=C

# The first stage finds out what the packages depend on and downloads it; the second one would run their scripts.
debootstrap --foreign --arch="$arch" --variant=minbase --include="$packages" bookworm "$root" "$mirror" || {
	tail -n 40 "$root/debootstrap/debootstrap.log" >&2
	exit 1
}
for deb in "$root"/var/cache/apt/archives/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -C "$root" --keep-directory-symlink -xf -
done
rm -rf "$root"/var/cache/apt/archives/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale} "$root/debootstrap"
# debootstrap may leave links to this machine's file systems, where it could not make device nodes.
for d in proc sys dev; do
	[[ ! -L $root/$d ]] || rm "$root/$d"
	mkdir -p "$root/$d"
done
# What scripts would have made: a shell, an awk, users, and a cache of libraries that are not in the usual places.
[[ -e $root/bin/sh ]] || ln -s dash "$root/bin/sh"
ln -sf mawk "$root/usr/bin/awk"
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
echo '127.0.0.1 localhost stoker-vm' >"$root/etc/hosts"
mkdir -p "$root/host"

kib=$(du -sk --apparent-size "$root" | cut -f1)
truncate -s "$((kib + kib / 4 + 512 * 1024))K" "$dir/root.ext4"
mkfs.ext4 -q -F -d "$root" "$dir/root.ext4"
rm -rf "$root"
