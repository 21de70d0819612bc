#!/bin/bash
# Makes this machine ready to build and run Understudy: installs the Debian
# packages that are missing, and fetches a stock Debian cloud kernel, Debian 12's
# if apt has that, which it unpacks into the cache and does not install. Run it as often as you like.
#
#   $UNDERSTUDY_CACHE/kernels/RELEASE/boot/{vmlinuz,config}
#   $UNDERSTUDY_CACHE/kernels/RELEASE/lib/modules/RELEASE/
#   $UNDERSTUDY_CACHE/kernels/default -> RELEASE
#   $UNDERSTUDY_CACHE/nfs/    programs for guests that serve NFS, and their libraries
#   $UNDERSTUDY_CACHE/smb/    likewise for a guest that serves SMB
#   $UNDERSTUDY_CACHE/tools/  promtool, which checks the rules for alerts
set -euo pipefail

packages=(qemu-system-x86 qemu-utils busybox-static e2fsprogs iproute2 fdisk xfsprogs btrfs-progs dosfstools makedumpfile xz-utils zstd lz4 bzip2 sqlite3 git fio attr)
# Of these, guests get copies: they are unpacked, not installed, so that no service
# of theirs starts on this machine.
nfs_packages=(nfs-kernel-server nfs-common rpcbind libtirpc3 libwrap0)
smb_packages=(ksmbd-tools libnl-3-200 libnl-genl-3-200)
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
kernels="$cache/kernels"
nfs="$cache/nfs"
smb="$cache/smb"
tools="$cache/tools"
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "setup: $*" >&2
	exit 1
}

# missing lists the packages that are not installed.
missing() {
	dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null |
		awk -v want="${packages[*]}" '
			$2 == "installed" { have[$1] = 1 }
			END { n = split(want, p, " "); for (i = 1; i <= n; i++) if (!(p[i] in have)) print p[i] }' || true
}

have_kernel() {
	[[ -s $kernels/default/boot/vmlinuz && -d $kernels/default/lib/modules ]]
}

# retry runs a command that needs the package lists. If it fails, the lists
# may be absent or old: they are updated, once, and the command runs again.
updated=
retry() {
	"$@" && return
	[[ -z $updated ]] || return 1
	echo "setup: updating the package lists" >&2
	apt-get -qq -o DPkg::Lock::Timeout=300 update || die "apt-get update failed; run this as root, with a network"
	updated=1
	"$@"
}

install_packages() {
	retry apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@" ||
		die "cannot install $*; run this as root on Debian 12, or install them by hand"
}

# find_package sets package to the one that the cloud kernel's metapackage
# wants: the newest, of Debian 12 if there are several.
find_package() {
	package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
		awk '/Depends: linux-image-[0-9].*-cloud-amd64$/ { all[$2 ~ /-6\.1\./] = $2 } END { print 1 in all ? all[1] : all[0] }')
	[[ -n $package ]]
}

# renamed prints the packages of a list by the names that they have here: libraries were renamed
# for the change to times of 64 bits.
renamed() {
	local name
	for name; do
		if [[ $name == lib* ]] && apt-cache show "${name}t64" >/dev/null 2>&1; then name+=t64; fi
		echo "$name"
	done
}

fetch_kernel() {
	local package release
	retry find_package ||
		die "no linux-image-*-cloud-amd64 in the package lists; add Debian 12 (bookworm) to the apt sources"
	release=${package#linux-image-}
	if [[ ! -d $kernels/$release ]]; then
		echo "setup: fetching $package" >&2
		tmp=$(mktemp -d "$kernels/.tmp.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		mkdir "$tmp/deb" "$tmp/all" "$tmp/kernel" "$tmp/kernel/boot"
		chmod 755 "$tmp"
		cd "$tmp/deb"
		retry apt-get -qq -o APT::Sandbox::User=root download "$package" ||
			die "cannot download $package; is the network there?"
		cd "$kernels"
		dpkg-deb -x "$tmp"/deb/*.deb "$tmp/all"
		mv "$tmp/all/boot/vmlinuz-$release" "$tmp/kernel/boot/vmlinuz"
		mv "$tmp/all/boot/config-$release" "$tmp/kernel/boot/config"
		if [[ -d $tmp/all/lib ]]; then mv "$tmp/all/lib" "$tmp/kernel/lib"; else mv "$tmp/all/usr/lib" "$tmp/kernel/lib"; fi
		sync -f "$tmp/kernel"
		mv -T "$tmp/kernel" "$kernels/$release"
	fi
	ln -sfn "$release" "$kernels/.default"
	mv -T "$kernels/.default" "$kernels/default"
	have_kernel || die "the kernel in $kernels/$release is incomplete; remove that directory and run this again"
}

have_nfs() {
	[[ -x $nfs/usr/sbin/rpc.mountd && (-x $nfs/sbin/rpcbind || -x $nfs/usr/sbin/rpcbind) ]]
}

have_smb() {
	[[ -x $smb/usr/sbin/ksmbd.mountd ]]
}

# unpack fetches packages and unpacks them into a directory.
unpack() {
	local into=$1 tmp deb names
	shift
	echo "setup: fetching $*" >&2
	tmp=$(mktemp -d "$kernels/.tmp.XXXXXX")
	mkdir "$tmp/deb" "$tmp/all"
	chmod 755 "$tmp" "$tmp/all"
	cd "$tmp/deb"
	mapfile -t names < <(renamed "$@")
	retry apt-get -qq -o APT::Sandbox::User=root download "${names[@]}" ||
		die "cannot download ${names[*]}; is the network there?"
	for deb in "$tmp"/deb/*.deb; do dpkg-deb -x "$deb" "$tmp/all"; done
	cd "$kernels"
	sync -f "$tmp/all"
	rm -rf "$into"
	mv -T "$tmp/all" "$into"
	rm -rf "$tmp"
}

fetch_nfs() {
	unpack "$nfs" "${nfs_packages[@]}"
	have_nfs || die "the packages in $nfs are incomplete; remove that directory and run this again"
}

fetch_smb() {
	unpack "$smb" "${smb_packages[@]}"
	have_smb || die "the packages in $smb are incomplete; remove that directory and run this again"
}

have_tools() {
	[[ -x $tools/usr/bin/promtool ]]
}

# fetch_tools takes promtool out of its package, which in Debian 12 is that of Prometheus, and would start
# a service.
fetch_tools() {
	local tmp package=promtool
	apt-cache show "$package" >/dev/null 2>&1 || package=prometheus
	echo "setup: fetching $package, for promtool" >&2
	tmp=$(mktemp -d "$kernels/.tmp.XXXXXX")
	mkdir "$tmp/deb" "$tmp/tools"
	chmod 755 "$tmp" "$tmp/tools"
	cd "$tmp/deb"
	retry apt-get -qq -o APT::Sandbox::User=root download "$package" ||
		die "cannot download $package; is the network there?"
	dpkg-deb --fsys-tarfile "$tmp"/deb/*.deb | tar -x -C "$tmp/tools" ./usr/bin/promtool
	cd "$kernels"
	sync -f "$tmp/tools"
	rm -rf "$tools"
	mv -T "$tmp/tools" "$tools"
	rm -rf "$tmp"
	have_tools || die "the package $package has no promtool any more"
}

command -v dpkg-query >/dev/null || die "this is no Debian; install ${packages[*]} and a kernel by hand"
if [[ -z $(missing) ]] && have_kernel && have_nfs && have_smb && have_tools; then
	exit 0
fi

mkdir -p "$kernels"
kernels=$(cd "$kernels" && pwd)
nfs=$(dirname "$kernels")/nfs
smb=$(dirname "$kernels")/smb
tools=$(dirname "$kernels")/tools
exec 9>"$kernels/.lock"
flock 9 # whoever comes second finds everything done
rm -rf "$kernels"/.tmp.* # of a run that was killed
read -ra need <<<"$(missing | tr '\n' ' ')"
if ((${#need[@]})); then
	echo "setup: installing ${need[*]}" >&2
	install_packages "${need[@]}"
fi
have_kernel || fetch_kernel
have_nfs || fetch_nfs
have_smb || fetch_smb
have_tools || fetch_tools
