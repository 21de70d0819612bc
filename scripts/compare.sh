#!/bin/bash
# Measures `understudy salvage list` beside crash and drgn on one dump of a Debian kernel of this machine's
# suite, and prints docs/SALVAGE.md's table: medians of three runs, all after a first one. What these
# need is fetched as scripts/setup.sh fetches its kernel, is unpacked into the cache, and not installed:
# the kernel's debug symbols are some 300 MB.
#
# usage: scripts/compare.sh DUMP
set -euo pipefail

cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
here=$(realpath "${BASH_SOURCE%/*}")
understudy=$here/../bin/understudy
export LC_ALL=C

die() {
	echo "compare: $*" >&2
	exit 1
}

(($# == 1)) || die "usage: scripts/compare.sh DUMP, an ELF core or a kdump file"
dump=$(realpath "$1")
[[ -x $understudy ]] || die "run make build first"
release=$("$understudy" inspect "$dump" | awk '$1 == "kernel" { print $2 }')
[[ -n $release ]] || die "$dump has no kernel that understudy finds"
at=$cache/compare/$release

# fetch unpacks the tools, and the kernel's symbols, once.
fetch() {
	local tmp
	mkdir -p "$cache/compare"
	tmp=$(mktemp -d "$cache/compare/.tmp.XXXXXX")
	chmod 755 "$tmp"
	(cd "$tmp" && apt-get -qq -o APT::Sandbox::User=root download "linux-image-$release-dbg" crash python3-drgn libkdumpfile10 libsnappy1v5) ||
		die "cannot fetch crash, python3-drgn and linux-image-$release-dbg; is that kernel this Debian's, and are apt's lists new?"
	for deb in "$tmp"/[!l]*.deb "$tmp"/lib*.deb; do dpkg-deb -x "$deb" "$tmp"; done
	dpkg-deb --fsys-tarfile "$tmp"/linux-image-*.deb | tar -xO "./usr/lib/debug/boot/vmlinux-$release" >"$tmp/vmlinux"
	rm "$tmp"/*.deb
	mv -T "$tmp" "$at"
}
[[ -s $at/vmlinux ]] || fetch
export LD_LIBRARY_PATH=$at/usr/lib/x86_64-linux-gnu PYTHONPATH=$at/usr/lib/python3/dist-packages

printf 'mount\nmount -i\nquit\n' >"$at/commands"

# What understudy learns of a kernel it keeps; first has it learn all of it again.
list() { "$understudy" salvage list "$dump"; }
first() { UNDERSTUDY_CACHE=$at/none "$understudy" salvage list "$dump"; rm -rf "$at/none"; }
with_crash() { "$at/usr/bin/crash" -s "$at/vmlinux" "$dump" -i "$at/commands" </dev/null; }
with_drgn() { /usr/bin/python3 "$at/usr/bin/drgn" -q -c "$dump" -s "$at/vmlinux" "$here/compare.py"; }

# row runs a tool four times and prints the median of the last three, and the last line that it said.
row() {
	local name=$1 needs=$2 times=() before said
	for n in 0 1 2 3; do
		before=$(date +%s%N)
		said=$("$3" 2>&1 | tail -n 1) || true
		((n == 0)) || times+=($((($(date +%s%N) - before) / 1000000)))
	done
	printf '| %s | %s | %s s | %s |\n' "$name" "$needs" \
		"$(printf '%s\n' "${times[@]}" | sort -n | awk 'NR == 2 { printf "%.2f", $1 / 1000 }')" "$said"
}

symbols=$(($(stat -c %s "$at/vmlinux") >> 20)) # in MiB
echo "| tool | needs of this kernel | time | the last line it says |"
echo "|---|---|---|---|"
row "\`understudy salvage list\`, of a kernel that it never saw" nothing first
row "\`understudy salvage list\`, of one that it did" nothing list
row "crash $("$at/usr/bin/crash" --version | awk '$1 == "crash" { print $2; exit }'), \`mount\` and \`mount -i\`" "its vmlinux with symbols, $symbols MiB" with_crash
row "$(/usr/bin/python3 "$at/usr/bin/drgn" --version | awk '{ print $1, $2 }'), scripts/compare.py" "likewise" with_drgn
