#!/bin/bash
# Builds modules for a kernel of kernels.sh that Debian 12 has a compiler for: LiME, which dumps
# a running kernel's memory, and ours, which has a kernel fail (internal/lab/fault/module). The
# archive's source and headers are unpacked into a directory of their own, not installed,
# and removed again; the compiler is installed.
#
#   $UNDERSTUDY_CACHE/modules/RELEASE/lime.ko and fault.ko
#
# It ends with status 3 if this machine cannot have what that takes.
#
# usage: scripts/modules.sh KERNEL lime|fault; KERNEL is one of these names of kernels.sh:
set -euo pipefail

names=(6.1-generic 6.12-cloud 6.12-generic)
tools=(gcc-12 make binutils dwarves)
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
ours=$(cd "${BASH_SOURCE%/*}/../internal/lab/fault/module" && pwd)
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "modules: $*" >&2
	exit 3
}

. "${BASH_SOURCE%/*}/archive.sh"

# fetch downloads packages and unpacks them.
fetch() {
	mkdir "$tmp/deb" "$tmp/all"
	(cd "$tmp/deb" && apt-get -qq "${apt[@]}" download "$@") || return 1
	local deb
	for deb in "$tmp"/deb/*.deb; do dpkg-deb -x "$deb" "$tmp/all" || return 1; done
}

# have says whether a module is there, made from the source as it is now.
have() {
	[[ -s $out/$module.ko ]] && [[ $module != fault || $(cat "$out/fault.sum" 2>/dev/null) == $(sum) ]]
}

sum() { cat "$ours"/fault.c "$ours"/Kbuild | sha256sum; }

kernel=$1 module=$2
command -v apt-get >/dev/null || die "this is no Debian"
[[ " ${names[*]} " == *" $kernel "* ]] || die "no modules for $kernel; there are ${names[*]}"
"${BASH_SOURCE%/*}/kernels.sh" "$kernel" || die "there is no kernel to build it for"
release=$(basename "$(echo "$cache/kernels/$kernel"/lib/modules/*)")
out=$cache/modules/$release
have && exit 0

mkdir -p "$out"
exec 8>"$cache/kernels/.lock"
flock 8
have && exit 0
if ! dpkg-query -W -f '${db:Status-Status}\n' "${tools[@]}" 2>/dev/null | awk '$1 == "installed" { n++ } END { exit n != 4 }'; then
	echo "modules: installing ${tools[*]}" >&2
	apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${tools[@]}" >/dev/null ||
		die "cannot install ${tools[*]}; run this as root on Debian 12, after apt-get update"
fi
tmp=$(mktemp -d "$cache/modules/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
echo "modules: building $module for $release" >&2
open_apt "${kernel%-*}" || die "cannot update the package lists"
headers=linux-headers-$release
packages=("$headers" $(depends "$headers" | grep -E '^linux-(headers|kbuild)-'))
[[ $module == fault ]] || packages+=(lime-forensics-dkms)
fetch "${packages[@]}" || die "the archive has no $headers any more; remove $cache/kernels/$kernel to have a newer kernel"
# The headers name the place where they would be installed.
sed -i "s|/usr/src/|$tmp/all/usr/src/|" "$tmp/all/usr/src/$headers/Makefile"
if [[ $module == fault ]]; then
	cp -r "$ours" "$tmp/source"
	source=$tmp/source
else
	source=$(echo "$tmp"/all/usr/src/lime-forensics-*)
fi
make -s -C "$tmp/all/usr/src/$headers" M="$source" modules >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2 && exit 1; }
strip --strip-unneeded "$source/$module.ko"
mv -T "$source/$module.ko" "$out/$module.ko"
[[ $module != fault ]] || sum >"$out/fault.sum"
sync -f "$cache/modules"
