#!/bin/bash
# Makes a Debian 12 tree with systemd as an ext4 image, for guests of package vm. Needs root, debootstrap and e2fsprogs.
#
# Runs in namespaces of its own (unshare --mount --pid): what debootstrap mounts and what maintainer scripts start ends with it,
# also when it is killed.
#
# Usage: tree.sh DIRECTORY MIRROR PACKAGE,…      makes DIRECTORY/root.ext4, in place of all else in DIRECTORY
set -euo pipefail
dir=$1 mirror=$2 packages=$3
root=$dir/root
export LC_ALL=C

debootstrap --variant=minbase --include="$packages" bookworm "$root" "$mirror" || {
	tail -n 40 "$root/debootstrap/debootstrap.log" >&2
	exit 1
}
rm -f "$root"/var/cache/apt/archives/*.deb
rm -rf "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}

echo stoker-vm >"$root/etc/hostname"
echo '127.0.0.1 localhost stoker-vm' >"$root/etc/hosts"
: >"$root/etc/fstab"
# A machine id of the tree's own makes the first boot an ordinary one, which applies no presets.
printf '%032d\n' 1 >"$root/etc/machine-id"

# Engines start when a test asks for them; a guest that waits for its serial console or for timers only waits.
for unit in containerd.service docker.service docker.socket lxc.service lxc-net.service dnsmasq.service podman.service podman.socket \
	podman-auto-update.timer podman-auto-update.service podman-restart.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	fstrim.timer e2scrub_all.timer e2scrub_reap.service; do
	find "$root/etc/systemd/system" -name "$unit" -type l -delete
done
for unit in serial-getty@.service getty@.service console-getty.service systemd-timesyncd.service systemd-update-utmp.service \
	systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-firstboot.service ldconfig.service apparmor.service systemd-journal-catalog-update.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# A user with a range of subordinate ids, for user managers and rootless engines.
chroot "$root" useradd --create-home --uid 1000 --shell /bin/bash tester

# What the host wants to be run comes on the second disk. Its output goes through a virtio port, one line at a time, and its end is a
# line that nothing else writes; then the machine is switched off, for nothing on it is kept.
cat >"$root/etc/systemd/system/stoker-vm.service" <<'UNIT'
[Unit]
Description=what the host wants to be run
After=dbus.service systemd-logind.service systemd-user-sessions.service
[Service]
Type=exec
Environment=HOME=/root
ExecStart=/bin/bash /host/run
UNIT
mkdir -p "$root/host"
ln -sf ../stoker-vm.service "$root/etc/systemd/system/multi-user.target.wants/stoker-vm.service"
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"

kib=$(du -sk --apparent-size "$root" | cut -f1)
truncate -s "$((kib + kib / 4 + 1536 * 1024))K" "$dir/root.ext4"
mkfs.ext4 -q -F -d "$root" "$dir/root.ext4"
rm -rf "$root"
