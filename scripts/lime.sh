#!/bin/bash
# Builds LiME, the module that dumps a running kernel's memory, for the generic
# Linux 6.1 of scripts/kernels.sh: Debian's source and headers are unpacked into a
# directory of their own, not installed, and removed again.
#
#   $UNDERSTUDY_CACHE/lime/RELEASE/lime.ko
#
# It ends with status 3 if this machine cannot have what that takes.
set -euo pipefail

names=(6.1-generic)
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "lime: $*" >&2
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

command -v apt-get >/dev/null || die "this is no Debian"
"${BASH_SOURCE%/*}/kernels.sh" "${names[0]}" || die "there is no kernel to build it for"
release=$(basename "$(readlink -f "$cache/kernels/${names[0]}")")
[[ -s $cache/lime/$release/lime.ko ]] && exit 0

mkdir -p "$cache/lime"
exec 8>"$cache/kernels/.lock"
flock 8
[[ -s $cache/lime/$release/lime.ko ]] && exit 0
for tool in gcc-12 make strip; do
	command -v "$tool" >/dev/null || die "no $tool; apt-get install gcc-12 make binutils"
done
tmp=$(mktemp -d "$cache/lime/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
echo "lime: building it for $release" >&2
open_apt 6.1 || die "cannot update the package lists"
headers=linux-headers-$release
fetch lime-forensics-dkms "$headers" $(depends "$headers" | grep -E '^linux-(headers|kbuild)-') ||
	die "the archive has no $headers any more; remove $cache/kernels/${names[0]} to have a newer kernel"
# The headers name the place where they would be installed.
sed -i "s|/usr/src/|$tmp/all/usr/src/|" "$tmp/all/usr/src/$headers/Makefile"
source=$(echo "$tmp"/all/usr/src/lime-forensics-*)
make -s -C "$tmp/all/usr/src/$headers" M="$source" modules >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2 && exit 1; }
strip --strip-unneeded "$source/lime.ko"
mkdir -p "$cache/lime/$release"
mv -T "$source/lime.ko" "$cache/lime/$release/lime.ko"
sync -f "$cache/lime"
