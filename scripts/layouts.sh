#!/bin/bash
# Has a compiler tell how a kernel of some configuration lays out its structures, without
# building that kernel: of the source of Debian's 6.1, only the headers of what is read are
# compiled, with the fragments scripts/configs/base and scripts/configs/NAME over allnoconfig.
# The source is unpacked into a directory of its own, and removed again; the compiler is
# installed.
#
#   $UNDERSTUDY_CACHE/layouts/NAME.btf    the types, as a kernel would have them
#
# It ends with status 3 if this machine cannot have what that takes. Remove a file to have it
# made again.
#
# usage: scripts/layouts.sh [NAME...]; without names, all that are missing
set -euo pipefail

here=$(cd "${BASH_SOURCE%/*}" && pwd)
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
names=(small debug lockdep plain)
out=$cache/layouts
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "layouts: $*" >&2
	exit 3
}

. "$here/archive.sh"
. "$here/source.sh"

# headers are what is compiled, by the name of each object.
declare -A headers=(
	[core]="linux/fs.h linux/pagemap.h linux/backing-dev.h linux/buffer_head.h linux/xarray.h linux/sched.h
		linux/sched/signal.h linux/nsproxy.h linux/mount.h linux/fs_struct.h linux/utsname.h
		linux/timekeeper_internal.h linux/clocksource.h linux/jbd2.h linux/quota.h asm/e820/types.h
		fs/mount.h fs/ext4/ext4.h fs/jbd2/revoke.c kernel/printk/printk_ringbuffer.h"
	[xfs]="xfs.h xfs_fs.h xfs_shared.h xfs_format.h xfs_log_format.h xfs_trans_resv.h xfs_mount.h xfs_inode.h
		xfs_trans.h xfs_inode_item.h xfs_log.h xfs_log_priv.h"
	[btrfs]="ctree.h btrfs_inode.h ordered-data.h extent_map.h disk-io.h transaction.h"
)

# put_headers writes them to a directory, as parts of a module that is never linked.
put_headers() {
	local name header
	for name in "${!headers[@]}"; do
		for header in ${headers[$name]}; do echo "#include <$header>"; done >"$1/$name.c"
	done
	cat >"$1/Kbuild" <<-'END'
		obj-m := core.o xfs.o btrfs.o
		OBJECT_FILES_NON_STANDARD := y
		ccflags-y := -w -fno-eliminate-unused-debug-types $(addprefix -I$(srctree)/,. fs/ext4 fs/jbd2 fs/xfs fs/xfs/libxfs fs/btrfs)
	END
}

# build makes the types of one configuration.
build() {
	local name=$1 build=$tmp/$1
	mkdir "$build" "$build/module"
	put_headers "$build/module"
	configure "$build" base "$name" || return 1
	{
		make -s "${with[@]}" O="$build" prepare0 &&
			make -s "${with[@]}" O="$build" M="$build/module" core.o xfs.o btrfs.o &&
			ld -r -o "$build/all.o" "$build"/module/{core,xfs,btrfs}.o &&
			pahole -J --btf_encode_detached="$build/btf" "$build/all.o"
	} >>"$build/log" 2>&1 || { tail -n 20 "$build/log" >&2 && return 1; }
	chmod 644 "$build/btf"
	mv -T "$build/btf" "$out/$name.btf"
}

command -v apt-get >/dev/null || die "this is no Debian"
(($#)) || set -- "${names[@]}"
mkdir -p "$out"
exec 8>"$out/.lock"
flock 8
want=()
for name; do
	[[ -s $here/configs/$name && $name != base && $name != boot ]] || die "no configuration $name; there are ${names[*]}"
	[[ -s $out/$name.btf ]] || want+=("$name")
done
((${#want[@]})) || exit 0
need_tools
rm -rf "$out"/.tmp.*
tmp=$(mktemp -d "$out/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
open_source "$tmp"
for name in "${want[@]}"; do
	echo "layouts: compiling $name" >&2
	build "$name" || die "cannot compile $name"
done
