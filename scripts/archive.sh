# How the other scripts get packages of Debian's: through lists and settings of
# their own, from the mirrors and under the keys that this machine's apt uses
# already. To be sourced; needs die, names and cache.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# mirror prints where this machine's apt has a Debian archive from, by its label.
mirror() {
	apt-get indextargets --format '$(REPO_URI)' "Created-By: Packages" "Origin: Debian" "Label: $1" | head -n 1
}

# sources prints the sources.list that has a kernel of that version.
sources() {
	local main security
	main=$(mirror Debian)
	security=$(mirror Debian-Security)
	[[ -n $main ]] || die "apt here knows no Debian mirror; add Debian 12 to its sources and run apt-get update"
	case $1 in
	5.10) set -- bullseye bullseye-security ;;
	6.1) set -- bookworm bookworm-security ;;
	6.12) set -- bookworm-backports ;;
	newest) set -- sid ;;
	trixie) set -- trixie trixie-security ;;
	trixie-backports | experimental) set -- "$1" ;;
	*) die "no kernel $1; there are ${names[*]}" ;;
	esac
	echo "deb [signed-by=$keyring] $main $1 main"
	if [[ -n ${2:-} && -n $security ]]; then
		echo "deb [signed-by=$keyring] $security $2 main"
	fi
}

# open_apt gives apt a world of its own for a version, and an architecture other than
# this machine's if one is named, and fresh lists.
open_apt() {
	local arch=${2:-amd64} at=$cache/apt/$1
	[[ $arch == amd64 ]] || at+=-$arch
	mkdir -p "$at/lists/partial" "$at/archives/partial"
	sources "$1" >"$at/sources.list"
	apt=(-o "Dir::Etc::SourceList=$at/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
		-o "Dir::State=$at" -o Dir::State::status=/dev/null -o "Dir::Cache=$at"
		-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false)
	[[ -n ${fresh[$at]:-} ]] && return
	echo "${0##*/}: updating the package lists for $1 ($arch)" >&2
	apt-get -qq "${apt[@]}" -o APT::Update::Error-Mode=any update || return 1
	fresh[$at]=1
}
declare -A fresh

# depends prints the packages that a package depends on.
depends() {
	apt-cache "${apt[@]}" depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces "$1" |
		awk '$1 == "Depends:" { print $2 }'
}
