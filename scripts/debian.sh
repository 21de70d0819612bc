#!/bin/bash
# Makes a root disk with a release of Debian and one of the kernels of setup.sh or kernels.sh, which
# stands for a machine of somebody's: systemd, GRUB, an NFS server and a web server, all from
# the archive. It prints the path of the disk. What a test has it do is put into a copy (package barelab).
#
#   $UNDERSTUDY_CACHE/debian/SUITE-KEY.tar          the system without a kernel, made once; KEY stands for its packages
#   $UNDERSTUDY_CACHE/debian/SUITE-KEY-RELEASE.img  a disk: one partition, ext4, and GRUB
#
# usage: scripts/debian.sh SUITE KERNEL; KERNEL is a name of kernels.sh, or default. Remove the
# files to have them made anew.
set -euo pipefail

packages=(systemd-sysv udev iproute2 kmod procps e2fsprogs initramfs-tools grub-pc-bin grub2-common nfs-kernel-server lighttpd busybox-static lvm2)
programs=(nginx-light postgresql redis-server mariadb-server samba smbclient) # of Debian 13, and their units:
units=(lighttpd nfs-server nginx postgresql redis-server mariadb smbd nmbd samba-ad-dc)
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
scripts=$(cd "${BASH_SOURCE%/*}" && pwd)
size=3072 # MiB
first=2048 # sector of the partition
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "debian: $*" >&2
	exit 1
}

# bootstrap makes the system without a kernel.
bootstrap() {
	if ! command -v mmdebstrap >/dev/null; then
		echo "debian: installing mmdebstrap" >&2
		apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends mmdebstrap >/dev/null ||
			die "cannot install mmdebstrap; run this as root on Debian 12, after apt-get update"
	fi
	echo "debian: making $suite (some minutes)" >&2
	local include="${packages[*]}"
	mmdebstrap --quiet --variant=minbase --mode=root --include="${include// /,}" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		"$suite" "$tmp/root.tar" >&2 || die "mmdebstrap failed; is the network there?"
	mv "$tmp/root.tar" "$debian/$name.tar"
}

# furnish puts a kernel and what a machine has of its own into a tree.
furnish() {
	local root=$1 release=$2 kernel=$3
	cp "$kernel/boot/vmlinuz" "$root/boot/vmlinuz-$release"
	cp "$kernel/boot/config" "$root/boot/config-$release"
	mkdir -p "$root/usr/lib/modules"
	cp -a "$kernel/lib/modules/$release" "$root/usr/lib/modules/"
	printf '%s\n' machine >"$root/etc/hostname"
	printf '%s\n' 'LABEL=root / ext4 defaults 0 1' 'LABEL=data /srv ext4 nofail 0 2' >"$root/etc/fstab"
	printf '%s\n' ext4 virtio_pci virtio_blk nvme crc32c_generic >>"$root/etc/initramfs-tools/modules"
	sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=gzip/' "$root/etc/initramfs-tools/initramfs.conf"
	mkdir -p "$root/etc/default" "$root/boot/grub" "$root/etc/systemd/network"
	printf '%s\n' '[Match]' 'Name=eth0' '[Network]' 'Address=10.77.0.2/24' >"$root/etc/systemd/network/eth0.network"
	# As for every kernel under emulation (package partition says why).
	cat >"$root/etc/default/grub" <<-END
		GRUB_DEFAULT=0
		GRUB_TIMEOUT=0
		GRUB_DISABLE_OS_PROBER=true
		GRUB_TERMINAL=serial
		GRUB_CMDLINE_LINUX="$parameters"
	END
	cat >"$root/etc/systemd/system/lab.service" <<-END
		[Unit]
		Description=What a test has this machine do
		After=multi-user.target
		ConditionPathExists=/lab
		[Service]
		ExecStart=/bin/sh /lab
		StandardOutput=tty
		StandardError=tty
		TTYPath=/dev/ttyS0
		[Install]
		WantedBy=multi-user.target
	END
	cat >"$root/boot/grub/grub.cfg" <<-END
		linux /boot/vmlinuz-$release root=LABEL=root ro $parameters
		initrd /boot/initrd.img-$release
		boot
	END
	chroot "$root" sh -ec "
		depmod $release
		update-initramfs -c -k $release
		systemctl -q enable systemd-networkd lab
		for u in ${units[*]}; do ! systemctl -q is-enabled \$u || systemctl -q disable \$u; done
		systemctl -q mask getty.target serial-getty@ttyS0 systemd-networkd-wait-online apt-daily.timer apt-daily-upgrade.timer
		cp -r /usr/lib/grub/i386-pc /boot/grub/
		cd /boot/grub && grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o core.img biosdisk part_msdos ext2 normal linux serial echo configfile search test
	" >&2
}
parameters="console=ttyS0 quiet net.ifnames=0 panic=0 tsc=reliable clocksource=tsc no_timer_check random.trust_cpu=on GODEBUG=cpu.avx2=off"

# le32 prints a number as an escaped word, the low byte first.
le32() { printf '\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24)); }

# write_disk makes a disk of a tree. GRUB's first sector reads the second, which reads the
# rest from the third on, by default (grub-core/boot/i386/pc/{boot,diskboot}.S).
write_disk() {
	local root=$1 disk=$2
	truncate -s "${size}M" "$disk"
	mke2fs -q -t ext4 -L root -E "offset=$((first * 512))" -d "$root" "$disk" "$((size - 1))M"
	# An entry of the partition table: to be booted, Linux, its first sector, and how many.
	printf '\x80\xfe\xff\xff\x83\xfe\xff\xff%b%b' "$(le32 $first)" "$(le32 $((size * 2048 - first)))" |
		dd status=none conv=notrunc of="$disk" bs=1 seek=446 count=16
	printf '\x55\xaa' | dd status=none conv=notrunc of="$disk" bs=1 seek=510
	(($(stat -c %s "$root/boot/grub/core.img") < (first - 1) * 512)) || die "GRUB is too large"
	dd status=none conv=notrunc if="$root/usr/lib/grub/i386-pc/boot.img" of="$disk" bs=440 count=1
	dd status=none conv=notrunc if="$root/boot/grub/core.img" of="$disk" bs=512 seek=1
}

suite=${1:?usage: scripts/debian.sh SUITE KERNEL}
kernel=$cache/kernels/${2:?usage: scripts/debian.sh SUITE KERNEL}
[[ $suite != trixie ]] || packages+=("${programs[@]}")
if [[ $2 == default ]]; then "$scripts/setup.sh" >&2; else "$scripts/kernels.sh" "$2" >&2; fi
release=$(basename "$(echo "$kernel"/lib/modules/*)")
debian=$cache/debian
key=$(echo "${packages[*]}" | sha256sum)
name=$suite-${key:0:8}
image=$debian/$name-$release.img
echo "$image"
[[ -s $image ]] && exit 0
mkdir -p "$debian"
exec 7>"$debian/.lock"
flock 7
[[ -s $image ]] && exit 0
rm -rf "$debian"/.tmp.* # of a run that was killed
tmp=$(mktemp -d "$debian/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"
[[ -s $debian/$name.tar ]] || bootstrap
echo "debian: making a disk of $suite with kernel $release" >&2
mkdir "$tmp/root"
tar -C "$tmp/root" -xf "$debian/$name.tar" --exclude='./dev/*'
furnish "$tmp/root" "$release" "$kernel"
write_disk "$tmp/root" "$tmp/disk.img"
sync "$tmp/disk.img"
mv "$tmp/disk.img" "$image"
