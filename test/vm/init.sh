#!/bin/busybox sh
# The first process of a guest of package vm: finds the two disks and hands over to systemd.
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
busybox grep -v '^$' /modules | while read -r m; do
	busybox insmod "$m" || echo "stoker-vm: $m does not load"
done
n=0
while [ ! -b /dev/vda ] || [ ! -b /dev/vdb ]; do
	n=$((n + 1))
	[ $n -lt 300 ] || { echo "stoker-vm: no disks"; busybox poweroff -f; }
	busybox usleep 100000
done
busybox mount -t ext4 /dev/vda /newroot || busybox poweroff -f
busybox mount -t ext4 -o ro /dev/vdb /newroot/host || busybox poweroff -f
busybox mount --move /dev /newroot/dev
busybox umount /sys /proc
exec busybox switch_root /newroot /sbin/init
