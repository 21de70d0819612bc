package pair

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// nfsDisk and nfs are appended to smallest.
const nfsDisk = "disks: [{name: d, image: d.img, mount: /srv}]\n"

const nfs = `nfs:
  exports: ["/srv/export *(rw,fsid=1)"]
  state: /srv/.nfs
`

func TestParseNFS(t *testing.T) {
	tests := []struct {
		name, text string
		want       NFS
	}{
		{"defaults", nfs, NFS{State: "/srv/.nfs", Lease: 90 * time.Second, Grace: 90 * time.Second, Threads: 8}},
		{"all", nfs + "  lease: 10s\n  grace: 15s\n  threads: 16\n  udp: true\n",
			NFS{State: "/srv/.nfs", Lease: 10 * time.Second, Grace: 15 * time.Second, Threads: 16, UDP: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Exports = []string{"/srv/export *(rw,fsid=1)"}
			p, err := parse("pair.yaml", "/etc", []byte(smallest+nfsDisk+tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*p.NFS, tt.want) {
				t.Errorf("%+v", *p.NFS)
			}
		})
	}
}

func TestParseNFSRefuses(t *testing.T) {
	tests := []struct {
		name, old, new string
		want           string // in the message
	}{
		{"no fsid", "rw,fsid=1", "rw", `pair.yaml:7: nfs.exports.0: client "*(rw)": it has no fsid; add e.g. fsid=1`},
		{"no export", `["/srv/export *(rw,fsid=1)"]`, "[]", "pair.yaml:7: nfs.exports: exports nothing; write e.g."},
		{"no options", "*(rw,fsid=1)", "*", "is not a client with its options in parentheses; write e.g."},
		{"elsewhere", "/srv/export", "/export", "pair.yaml:7: nfs.exports.0: /export is on no shared disk"},
		{"fsid twice", `=1)"]`, `=1)", "/srv/b *(fsid=1)"]`, "nfs.exports.1: fsid 1 is that of /srv/export already; give each directory its own"},
		{"state elsewhere", "/srv/.nfs", "/var/lib/nfs", "pair.yaml:8: nfs.state: /var/lib/nfs is on no shared disk"},
		{"state exported", "/srv/.nfs", "/srv/export/.nfs", "clients could change it; export a directory beside it"},
		{"no state", "  state: /srv/.nfs\n", "", `nfs: key "state" is missing`},
		{"short lease", "/srv/.nfs\n", "/srv/.nfs\n  lease: 5s\n", "nfs.lease: 5s is not a whole number of seconds from 10s to 1h0m0s"},
		{"half a second", "/srv/.nfs\n", "/srv/.nfs\n  grace: 90500ms\n", "nfs.grace: 1m30.5s is not a whole number"},
		{"short grace", "/srv/.nfs\n", "/srv/.nfs\n  grace: 89s\n", "pair.yaml:9: nfs.grace: 1m29s is less than the lease of 1m30s"},
		{"threads", "/srv/.nfs\n", "/srv/.nfs\n  threads: 0\n", `nfs.threads: "0" is not a number of threads`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(nfs, tt.old) != 1 {
				t.Fatalf("%q occurs %d times", tt.old, strings.Count(nfs, tt.old))
			}
			_, err := parse("pair.yaml", "/etc", []byte(smallest+nfsDisk+strings.Replace(nfs, tt.old, tt.new, 1)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got:\n%v\nwant in it:\n%s", err, tt.want)
			}
		})
	}
}
