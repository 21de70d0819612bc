#!/bin/bash
# Makes a root disk with a Debian and programs from the archive, by `understudy image build`, and
# prints its path; what it boots is beside it, .vmlinuz and .initrd. Tests boot copies of it
# (package systems).
#
#   $UNDERSTUDY_CACHE/systems/NAME-KEY.img; KEY stands for what is in it
#
# usage: scripts/systems.sh [NAME]; bin/understudy must be there. NAME is a suite of Debian's, with
# programs that keep data; host: a machine with what our package depends on, and nothing of
# ours; or selinux: a server with Debian's policy for SELinux, which is enforced if the kernel is told security=selinux. Remove the files to have them made anew.
set -euo pipefail

name=${1:-bookworm}
cd "${BASH_SOURCE%/*}/.."
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}/systems"
understudy=bin/understudy
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "systems: $*" >&2
	exit 1
}

case $name in
host)
	suite=bookworm
	size=4096
	packages=$(sed -n 's/^depends: \[\(.*\)\]/\1/p' packaging/nfpm.yaml | tr -d ' ')
	;;
selinux)
	suite=bookworm
	size=2560
	packages=selinux-policy-default,policycoreutils,nginx-light,busybox-static,procps
	;;
*)
	suite=$name
	size=3072
	packages=postgresql,nginx-light,git,prometheus,podman,crun,busybox-static,lvm2
	;;
esac
[[ -n $packages ]] || die "packaging/nfpm.yaml names nothing that the package depends on"
# All files get the label that the policy has for them. setfilecon(3) needs /proc.
enforce='
set -e
at=$(mktemp -d)
trap "umount -R $at; rmdir $at" EXIT
mount -o loop "$1" "$at"
mount -t proc proc "$at/proc"
sed -i "s/^SELINUX=.*/SELINUX=enforcing/" "$at/etc/selinux/config"
chroot "$at" setfiles -F /etc/selinux/default/contexts/files/file_contexts /
'
key=$(echo "$suite $size $packages" | sha256sum)
image=$cache/$name-${key:0:8}.img
echo "$image"
[[ -s $image ]] && exit 0
[[ -x $understudy ]] || die "no $understudy: make build makes it"
mkdir -p "$cache"
exec 7>"$cache/.lock"
flock 7
[[ -s $image ]] && exit 0
rm -rf "$cache"/.understudy-build-* "$cache"/new.img* # of a run that was killed
if ! command -v mmdebstrap >/dev/null; then
	echo "systems: installing mmdebstrap" >&2
	apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends mmdebstrap >/dev/null ||
		die "cannot install mmdebstrap; run this as root on Debian 12, after apt-get update"
fi
echo "systems: making $name (some minutes)" >&2
"$understudy" image build --suite "$suite" --package "$packages" --size "$size" "$cache/new.img" >&2 || die "see above"
[[ $name != host && $name != selinux ]] || "$understudy" image prepare --undo "$cache/new.img" >&2 || die "see above"
[[ $name != selinux ]] || unshare -m bash -c "$enforce" bash "$cache/new.img" >&2 || die "see above"
mv "$cache/new.img.vmlinuz" "$image.vmlinuz"
mv "$cache/new.img.initrd" "$image.initrd"
sync "$cache/new.img"
mv "$cache/new.img" "$image"
