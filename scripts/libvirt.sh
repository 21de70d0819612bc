#!/bin/bash
# Fetches libvirt, its client and Pacemaker's resource agents, with their tester, as Debian has them. They are
# unpacked and not installed, so that no service of theirs starts on this machine: tests lay
# the tree over / in namespaces of their own (package libvirtlab).
#
#   $UNDERSTUDY_CACHE/libvirt/{usr,etc,var}
set -euo pipefail

packages=(libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients resource-agents libxml2-utils)
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}"
export LC_ALL=C

die() {
	echo "libvirt: $*" >&2
	exit 1
}

have() {
	[[ -x $cache/libvirt/usr/sbin/libvirtd && -x $cache/libvirt/usr/sbin/ocf-tester ]] &&
		{ [[ -x $cache/libvirt/usr/bin/xmllint ]] || command -v xmllint >/dev/null; }
}

have && exit 0
"${BASH_SOURCE%/*}/setup.sh"
exec 9>"$cache/.libvirt.lock"
flock 9 # whoever comes second finds everything done
have && exit 0
rm -rf "$cache"/.libvirt.tmp.* # of a run that was killed
tmp=$(mktemp -d "$cache/.libvirt.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
# Debian has had one tree for /lib and /usr/lib since 12: what a package has in either is there.
mkdir -p "$tmp/deb" "$tmp/tree/usr/lib" "$tmp/tree/usr/sbin" "$tmp/tree/usr/bin" "$tmp/tree/etc" "$tmp/tree/var"
for dir in lib sbin bin; do ln -s "usr/$dir" "$tmp/tree/$dir"; done
chmod 755 "$tmp" "$tmp/tree"
# With what they need and this machine does not have.
wanted() {
	apt-get -qq -s -o Debug::NoLocking=1 install --no-install-recommends "${packages[@]}" | awk '/^Inst/ { print $2 }'
}
needed=$(wanted) || { apt-get -qq -o DPkg::Lock::Timeout=300 update && needed=$(wanted); } ||
	die "no ${packages[*]} in the package lists; run this as root on Debian 12"
[[ -n $needed ]] || needed=${packages[*]}
echo "libvirt: fetching ${packages[*]}" >&2
cd "$tmp/deb"
# shellcheck disable=SC2086 # they are words
apt-get -qq -o APT::Sandbox::User=root download $needed || die "cannot download them; is the network there?"
for deb in "$tmp"/deb/*.deb; do dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$tmp/tree"; done
cd "$cache"
rm "$tmp/tree/lib" "$tmp/tree/sbin" "$tmp/tree/bin"
sync -f "$tmp/tree"
rm -rf "$cache/libvirt"
mv -T "$tmp/tree" "$cache/libvirt"
have || die "the packages in $cache/libvirt are incomplete; remove that directory and run this again"
