#!/bin/bash
# Makes the Debian package of what is committed, or lies here: out/understudy_VERSION_amd64.deb.
# The same commit and the same Go give the same bytes. The packer is built from source the first
# time, which takes some minutes; NFPM names one that is there.
#
# usage: scripts/deb.sh [DIR]; DIR is where the package goes
set -euo pipefail
cd "${BASH_SOURCE%/*}/.."
export LC_ALL=C TZ=UTC
umask 022

out=${1:-out}
GO=${GO:-go}
nfpm=${NFPM:-$GO run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.0}
described=$(git describe --tags --always --dirty)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
case $described in
v[0-9]*) VERSION=${described#v} VERSION=${VERSION//-/+} ;;
*) VERSION=0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).${described//-/+} ;; # before the first tag
esac
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE" "$STAGE.manual"' EXIT
export VERSION STAGE SOURCE_DATE_EPOCH

make -s build GO="$GO" VERSION="$described"
bin/understudy manual "$STAGE.manual"

# put MODE FILE DIR [NAME]
put() { install -D -m "$1" "$2" "$STAGE/$3/${4:-${2##*/}}"; }
put 755 bin/understudy usr/bin
put 644 packaging/systemd/understudy@.service usr/lib/systemd/system
put 644 packaging/systemd/understudy-watch.service usr/lib/systemd/system
put 755 packaging/ocf/understudy usr/lib/ocf/resource.d/understudy pair
for page in "$STAGE.manual"/man?/*; do
	section=${page%/*}
	gzip -9n "$page"
	put 644 "$page.gz" "usr/share/man/${section##*/}"
done
put 644 "$STAGE.manual/understudy.bash" usr/share/bash-completion/completions understudy
put 644 "$STAGE.manual/_understudy" usr/share/zsh/vendor-completions
put 644 "$STAGE.manual/understudy.fish" usr/share/fish/vendor_completions.d
put 644 internal/live/pair/schema.json usr/share/understudy pair.schema.json
put 644 packaging/prometheus/understudy.rules.yml usr/share/understudy
put 644 packaging/grafana/understudy.json usr/share/understudy
doc=usr/share/doc/understudy
put 644 cmd/understudy/example.yaml $doc/examples web.yaml
put 644 LICENSE $doc copyright
put 644 README.md $doc
for page in docs/*.md; do put 644 "$page" $doc/docs; done
for picture in docs/*.svg; do put 644 "$picture" $doc/docs; done
put 644 CHANGELOG.md $doc changelog
gzip -9n "$STAGE/$doc/changelog"
"$GO" run ./internal/lab/cmd/sbom bin/understudy "$described" >"$STAGE/$doc/sbom.cdx.json"
find "$STAGE" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$out"
$nfpm package --config packaging/nfpm.yaml --packager deb --target "$out/understudy_${VERSION}_amd64.deb"
