#!/bin/bash
# Builds kernels of configurations that Debian does not have, of the source of its 6.1: the
# fragments base, NAME and boot of scripts/configs over allnoconfig, with nothing as a module.
#
#   $UNDERSTUDY_CACHE/kernels/built-NAME -> RELEASE, as scripts/kernels.sh has its own
#
# That takes two CPUs some minutes for each, and 4 GB of disk meanwhile. It ends with status 3
# if this machine cannot have what that takes. Remove a link to have it built again.
#
# usage: scripts/built.sh [NAME...]; without names, all that are missing
set -euo pipefail

here=$(cd "${BASH_SOURCE%/*}" && pwd)
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
names=(small lockdep debug randstruct)
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "built: $*" >&2
	exit 3
}

. "$here/archive.sh"
. "$here/source.sh"

# put places what the build of one configuration left where the lab looks for kernels.
put() {
	local name=$1 build=$2 release dir
	release=$(<"$build/include/config/kernel.release")
	dir=$tmp/kernel-$name
	mkdir -p "$dir/boot" "$dir/lib/modules/$release"
	cp "$build/arch/x86/boot/bzImage" "$dir/boot/vmlinuz" &&
		cp "$build/.config" "$dir/boot/config" &&
		cp "$build/modules.builtin" "$dir/lib/modules/$release" || return 1
	sync -f "$dir"
	rm -rf "$cache/kernels/$release"
	mv -T "$dir" "$cache/kernels/$release"
	ln -sfn "$release" "$cache/kernels/built-$name"
}

# build builds the kernel of one configuration.
build() {
	local name=$1 build=$tmp/$1
	mkdir "$build"
	configure "$build" base "$name" boot || return 1
	make -s "${with[@]}" O="$build" LOCALVERSION="-$name" bzImage >>"$build/log" 2>&1 ||
		{ tail -n 20 "$build/log" >&2 && return 1; }
	put "$name" "$build" || return 1 # bash's -e does not hold in here
	rm -rf "$build"
}

command -v apt-get >/dev/null || die "this is no Debian"
(($#)) || set -- "${names[@]}"
mkdir -p "$cache/kernels"
exec 8>"$cache/kernels/.built.lock"
flock 8
want=()
for name; do
	[[ " ${names[*]} " == *" $name "* ]] || die "no configuration $name; there are ${names[*]}"
	[[ -s $cache/kernels/built-$name/boot/vmlinuz ]] || want+=("$name")
done
((${#want[@]})) || exit 0
need_tools
tmp=$(mktemp -d "$cache/kernels/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
open_source "$tmp"
for name in "${want[@]}"; do
	echo "built: building a kernel with configuration $name" >&2
	build "$name" || die "cannot build $name"
done
