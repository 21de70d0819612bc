#!/bin/bash
# Makes a root disk with Debian 12 and programs that keep data, from the archive, by
# `understudy image build`; tests boot copies of it in pairs (package systems).
#
#   $UNDERSTUDY_CACHE/systems/SUITE.img, .img.vmlinuz, .img.initrd
#
# usage: scripts/systems.sh [SUITE]; bin/understudy must be there. Remove the files to have them
# made anew.
set -euo pipefail

suite=${1:-bookworm}
packages=postgresql,nginx-light,git,prometheus
cache="${UNDERSTUDY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/understudy}/systems"
understudy=$(cd "${BASH_SOURCE%/*}/.." && pwd)/bin/understudy
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

die() {
	echo "systems: $*" >&2
	exit 1
}

[[ -s $cache/$suite.img ]] && exit 0
[[ -x $understudy ]] || die "no $understudy: make build makes it"
mkdir -p "$cache"
exec 7>"$cache/.lock"
flock 7
[[ -s $cache/$suite.img ]] && exit 0
rm -rf "$cache"/.understudy-build-* "$cache"/new.img* # of a run that was killed
if ! command -v mmdebstrap >/dev/null; then
	echo "systems: installing mmdebstrap" >&2
	apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends mmdebstrap >/dev/null ||
		die "cannot install mmdebstrap; run this as root on Debian 12, after apt-get update"
fi
echo "systems: making a system (some minutes)" >&2
"$understudy" image build --suite "$suite" --package "$packages" --size 3072 "$cache/new.img" >&2 || die "see above"
mv "$cache/new.img.vmlinuz" "$cache/$suite.img.vmlinuz"
mv "$cache/new.img.initrd" "$cache/$suite.img.initrd"
sync "$cache/new.img"
mv "$cache/new.img" "$cache/$suite.img"
