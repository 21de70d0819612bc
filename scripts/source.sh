# How the other scripts get the source of Debian's kernel, and configure it. To be sourced
# behind archive.sh; needs die and here.
tools=(gcc-12 gcc-12-plugin-dev g++ make binutils dwarves flex bison bc libelf-dev)
with=(-j2 CC=gcc-12 HOSTCC=gcc-12)

# need_tools installs what compiles a kernel.
need_tools() {
	(($(dpkg-query -W -f '${db:Status-Status}\n' "${tools[@]}" 2>/dev/null | grep -cx installed || true) == ${#tools[@]})) && return
	echo "${0##*/}: installing ${tools[*]}" >&2
	apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${tools[@]}" >/dev/null ||
		die "cannot install ${tools[*]}; run this as root on Debian 12, after apt-get update"
}

# open_source unpacks the source of Debian's 6.1 below a directory, and goes there.
open_source() {
	echo "${0##*/}: fetching linux-source-6.1" >&2
	open_apt 6.1 || die "cannot update the package lists"
	(cd "$1" && apt-get -qq "${apt[@]}" download linux-source-6.1) || die "cannot fetch linux-source-6.1; is the network there?"
	dpkg-deb --fsys-tarfile "$1"/*.deb | tar -xO ./usr/src/linux-source-6.1.tar.xz | tar -xJ -C "$1"
	rm "$1"/*.deb
	cd "$1/linux-source-6.1"
}

# configure makes a configuration in a directory, of fragments in scripts/configs over
# allnoconfig: one that is as it was asked for.
configure() {
	local build=$1 line
	shift
	(cd "$here/configs" && cat "$@") >"$build/want"
	KCONFIG_ALLCONFIG=$build/want make -s "${with[@]}" O="$build" allnoconfig >"$build/log" 2>&1 || return 1
	while read -r line; do
		case $line in
		'#'*) ;;
		*=n) ! grep -q "^${line%n}" "$build/.config" ;;
		*) grep -qx "$line" "$build/.config" ;;
		esac || { echo "${0##*/}: $* cannot have $line" >&2 && return 1; }
	done <"$build/want"
}
