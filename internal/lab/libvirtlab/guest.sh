#!/bin/sh
# What the guest does: package libvirtlab says it.
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /lib/modules/order); do insmod /lib/modules/$m; done
mount -t ext4 -o commit=86400,noinit_itable /dev/vda1 /first || poweroff -f
mount -t ext4 -o commit=86400,noinit_itable /dev/vdb /second || poweroff -f

# tell WORD says what there is of files and directories.
tell() {
	find /first /second -type f | sort | xargs sha256sum | sed "s|^|$1: |"
	find /first /second | sort | xargs stat -c "$1: %A %s %Y %h %n" | sed '/^[a-z]*: d/s/ [0-9]* / dir /'
}
# drain returns once the console has put out all that was said: a kernel that panics discards the rest.
drain() { stty -F /dev/console opost; }
some() { dd if=/dev/urandom bs=1000 count="$1" 2>/dev/null; }

if [ -d /first/tree ]; then
	tell found
	echo "all found: yes"
	sync
	umount /first /second
	drain
	poweroff -f
fi
for top in /first /second; do
	mkdir -p $top/tree/old $top/tree/new
	for i in $(seq 12); do some $((i * i)) >$top/tree/old/$i; done
done
sync
for top in /first /second; do
	cd $top/tree
	for i in $(seq 25); do some $((i * 13)) >new/$i; done
	some 40 >>old/3
	some 1 | dd of=old/10 bs=1000 seek=33 conv=notrunc 2>/dev/null
	dd if=/dev/null of=old/11 bs=1000 seek=20 2>/dev/null
	some 7 | dd of=new/hole bs=1000 seek=900 2>/dev/null
	mv old/4 new/moved
	some 5 >new/written && mv new/written old/5
	rm old/6
	# Written past the page cache, and not flushed: of a qcow2 image, QEMU alone knows where it is.
	dd if=/dev/urandom of=new/direct bs=64k count=24 oflag=direct 2>/dev/null
done
cd /
tell left
echo "all left: yes"
drain
echo c >/proc/sysrq-trigger
