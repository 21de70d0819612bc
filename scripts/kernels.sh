#!/bin/bash
# Fetches the kernels of the matrix (docs/SUPPORT.md) beside the default one, and
# what makes their file systems and what stresses a kernel: Debian's 5.10, 6.1, 6.12 and its newest, of the
# cloud flavour, the generic one and that for real time. They come from the mirrors and under the
# keys that this machine's apt uses already, through lists and settings of their
# own, are unpacked into the cache, and not installed. Of the generic ones' many
# modules only those are kept that a test could want, uncompressed. Those for arm64
# come with the emulator that boots them. gokrazy is not Debian's: another project's build of
# upstream's source, which has no types of its own, from that project's module for Go.
#
#   $UNDERSTUDY_CACHE/kernels/5.10-cloud -> RELEASE, and so on for each NAME
#
# usage: scripts/kernels.sh [NAME...]; without names, all that are missing; trixie-cloud,
# trixie-backports-cloud and experimental-cloud only if they are named, and -arm64 behind
# any name but those for real time, and -16k (pages of 16 KiB) only with that. Remove a link to have its newest release.
set -euo pipefail

tools=(xfsprogs btrfs-progs dosfstools xz-utils stress-ng fio rt-tests lvm2 mdadm cryptsetup-bin)
names=(5.10-cloud 5.10-generic 6.1-generic 6.1-rt 6.12-cloud 6.12-generic 6.12-rt newest-cloud newest-generic newest-rt
	6.1-cloud-arm64 6.12-cloud-arm64 newest-cloud-arm64 newest-16k-arm64 gokrazy)
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "kernels: $*" >&2
	exit 1
}

. "${BASH_SOURCE%/*}/archive.sh"

# parts prints a package and those that it consists of: in newer ones the modules
# and the image itself are packages that the one by name depends on.
parts() {
	local package=$1 release=$2 dep
	echo "$package"
	for dep in $(depends "$package"); do
		case $dep in
		linux-headers-*) ;;
		linux-*-"$release") parts "$dep" "$release" ;;
		esac
	done
}

# unwanted are directories of drivers that no test loads anything from: most of
# the size of a generic kernel.
unwanted=(sound drivers/{gpu,media,infiniband,iio,staging,usb,input,hid,hwmon,video,isdn,comedi,mfd,mtd,power,pinctrl,platform}
	drivers/{thunderbolt,leds,rtc,watchdog,bluetooth,gnss,accel,crypto,edac,gpio,i2c,message,firewire,bcma,ssb,rapidio,greybus}
	drivers/net/{wireless,ethernet,usb,can,wan,dsa,phy,ieee802154,hamradio,fddi,arcnet,appletalk,plip,slip}
	drivers/scsi net/{bluetooth,wireless,mac80211,ieee802154,mac802154,can,nfc,rds,tipc,netfilter,sched,dccp,sctp,batman-adv})

# spared are drivers among those that some test loads: of the disks and the interface of a bare
# machine.
spared=(drivers/scsi/{scsi_common,scsi_mod,sd_mod} drivers/net/ethernet/intel/e1000e/e1000e)

# download unpacks a package, and those that it consists of, below a directory.
download() {
	local tmp=$1 package=$2 release=$3 deb
	mkdir "$tmp/deb" "$tmp/all"
	(cd "$tmp/deb" && parts "$package" "$release" | sort -u | xargs apt-get -qq "${apt[@]}" download) || return 1
	for deb in "$tmp"/deb/*.deb; do dpkg-deb -x "$deb" "$tmp/all" || return 1; done
}

# spare moves the spared drivers of one kernel's modules to another's. Their directory says that
# this was done.
spare() {
	local from=$1/kernel to=$2/kernel driver file
	mkdir -p "$to/drivers/scsi"
	for driver in "${spared[@]}"; do
		[[ ! -s $from/$driver.ko.xz ]] || xz -dq "$from/$driver.ko.xz" || return 1
		[[ -s $from/$driver.ko ]] || continue
		mkdir -p "$to/${driver%/*}" && mv "$from/$driver.ko" "$to/$driver.ko" || return 1
	done
}

# incomplete says whether a kernel was fetched when no driver was spared.
incomplete() { [[ $1 == *-generic && ! -d $(echo "$cache/kernels/$1"/lib/modules/*)/kernel/drivers/scsi ]]; }

# complete adds the spared drivers to such a kernel. Where the archive has its release no more it
# stays as it is, and tests that need one say so.
complete() {
	local name=$1 release tmp from
	release=$(basename "$(realpath "$cache/kernels/$name")")
	open_apt "${name%-*}" && tmp=$(mktemp -d "$cache/kernels/.tmp.XXXXXX") || return 1
	echo "kernels: fetching drivers of $release" >&2
	download "$tmp" "linux-image-$release" "$release" || echo "kernels: the archive has no $release any more" >&2
	from=$(find "$tmp/all" -type d -path "*/lib/modules/$release" | head -n 1)
	spare "${from:-/nonexistent}" "$cache/kernels/$name/lib/modules/$release" && rm -rf "$tmp"
}

gokrazy=github.com/gokrazy/kernel.amd64@v0.0.0-20260705070735-de680abf072b

# fetch_gokrazy copies that kernel from its module.
fetch_gokrazy() {
	local from release tmp
	echo "kernels: fetching $gokrazy" >&2
	from=$(cd "$cache" && go mod download -json "$gokrazy" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && [[ -s $from/vmlinuz ]] || return 1
	release=$(basename "$from"/lib/modules/*)
	tmp=$(mktemp -d "$cache/kernels/.tmp.XXXXXX")
	mkdir -p "$tmp/boot" "$tmp/lib/modules" && chmod 755 "$tmp" &&
		cp --no-preserve=mode "$from/vmlinuz" "$tmp/boot" &&
		cp -r --no-preserve=mode "$from/lib/modules/$release" "$tmp/lib/modules" && sync -f "$tmp" || return 1
	rm -rf "$cache/kernels/$release"
	mv -T "$tmp" "$cache/kernels/$release" && ln -sfn "$release" "$cache/kernels/gokrazy"
}

# fetch unpacks the kernel of a name.
fetch() {
	if [[ $1 == gokrazy ]]; then
		fetch_gokrazy
		return
	fi
	local name=${1%-arm64} arch=amd64 version meta package release dir tmp
	[[ $1 == *-arm64 ]] && arch=arm64
	version=${name%-*}
	meta=linux-image-$arch
	[[ $name == *-cloud ]] && meta=linux-image-cloud-$arch
	[[ $name == *-rt ]] && meta=linux-image-rt-$arch
	[[ $name == *-16k ]] && meta=linux-image-$arch-16k
	open_apt "$version" "$arch" || return 1
	package=$(depends "$meta" | grep -E "^linux-image-[0-9].*-$arch(-16k)?\$" | head -n 1) || return 1
	release=${package#linux-image-}
	dir=$cache/kernels/$release
	if [[ ! -d $dir ]]; then
		echo "kernels: fetching $package" >&2
		tmp=$(mktemp -d "$cache/kernels/.tmp.XXXXXX")
		mkdir "$tmp/kernel" "$tmp/kernel/boot"
		chmod 755 "$tmp"
		download "$tmp" "$package" "$release" && unpack "$tmp" "$release" || return 1
		mv -T "$tmp/kernel" "$dir" || return 1
		rm -rf "$tmp"
	fi
	ln -sfn "$release" "$cache/kernels/.$1" && mv -T "$cache/kernels/.$1" "$cache/kernels/$1"
}

# unpack puts what is wanted of the unpacked packages in its place.
unpack() {
	local all=$1/all kernel=$1/kernel spare=$1/spared release=$2 modules
	mv "$(find "$all" -name "vmlinuz-$release" -o -path "*/$release/vmlinuz" | head -n 1)" "$kernel/boot/vmlinuz" &&
		mv "$(find "$all" -name "config-$release" -o -path "*/$release/config" | head -n 1)" "$kernel/boot/config" &&
		mkdir -p "$kernel/lib/modules" &&
		mv "$(find "$all" -type d -path "*/lib/modules/$release" | head -n 1)" "$kernel/lib/modules/$release" || return 1
	modules=$kernel/lib/modules/$release
	spare "$modules" "$spare" && (cd "$modules/kernel" && rm -rf "${unwanted[@]}") && spare "$spare" "$modules" || return 1
	find "$modules" -name '*.ko.xz' -print0 | xargs -0r -n 64 -P "$(nproc)" xz -dq
	[[ -s $modules/modules.builtin && -n $(find "$modules" -name '*.ko' -print -quit) ]] && sync -f "$kernel"
}

command -v apt-get >/dev/null || die "this is no Debian"
(($#)) || set -- "${names[@]}"
want=() lack=()
for name; do
	if [[ $name == *-arm64 && ${tools[-1]} != qemu-system-arm ]]; then tools+=(qemu-system-arm); fi
	if [[ ! -s $cache/kernels/$name/boot/vmlinuz ]]; then want+=("$name"); elif incomplete "$name"; then lack+=("$name"); fi
done
have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${tools[@]}" 2>/dev/null | grep -c ' installed$' || true)
((${#want[@]} + ${#lack[@]} == 0 && have == ${#tools[@]})) && exit 0

mkdir -p "$cache/kernels"
exec 8>"$cache/kernels/.lock"
flock 8
if ((have != ${#tools[@]})); then
	echo "kernels: installing ${tools[*]}" >&2
	apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${tools[@]}" >/dev/null ||
		die "cannot install ${tools[*]}; run this as root on Debian 12, after apt-get update"
fi
failed=()
for name in "${want[@]}"; do
	fetch "$name" || failed+=("$name")
done
for name in "${lack[@]}"; do
	! incomplete "$name" || complete "$name" || failed+=("$name") # another may have done it meanwhile
done
((${#failed[@]} == 0)) || die "could not fetch ${failed[*]}; is the network there, and does the mirror still have them?"
