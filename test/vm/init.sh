#!/bin/busybox sh
# The first process of a guest of package vm: finds the two disks and hands over to systemd, or right to
# what the host wants to be run.
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
if busybox grep -q stoker-vm.bare /proc/cmdline; then
	busybox mount --move /proc /newroot/proc
	busybox mount --move /sys /newroot/sys
	cd /newroot
	busybox mount -t cgroup2 cgroup2 sys/fs/cgroup
	busybox mount -t bpf bpf sys/fs/bpf
	busybox mount -t tracefs tracefs sys/kernel/tracing
	busybox mkdir -p dev/shm
	for d in tmp run dev/shm; do busybox mount -t tmpfs tmpfs $d; done
	busybox ifconfig lo 127.0.0.1 up
	export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	exec busybox switch_root /newroot /bin/bash /host/run
fi
busybox umount /sys /proc
exec busybox switch_root /newroot /sbin/init
