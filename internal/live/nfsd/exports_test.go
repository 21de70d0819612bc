package nfsd

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseExport(t *testing.T) {
	e, err := ParseExport("/srv/export  *(rw,fsid=1) 10.0.0.0/8(ro,fsid=0x10) @hosts(fsid=root)")
	if err != nil {
		t.Fatal(err)
	}
	if e.Path != "/srv/export" || len(e.Clients) != 3 {
		t.Fatalf("%+v", e)
	}
	for i, want := range []struct {
		name string
		id   uint32
	}{{"*", 1}, {"10.0.0.0/8", 16}, {"@hosts", 0}} {
		if n, ok := e.Clients[i].number(); !ok || n != want.id || e.Clients[i].Name != want.name {
			t.Errorf("client %d: %+v, %d, %v", i, e.Clients[i], n, ok)
		}
	}
	byUUID, err := ParseExport("/srv *(fsid=8c9ec5e6-7e9a-4ea1-9a3f-000000000001)")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := byUUID.Clients[0].number(); ok {
		t.Error("a UUID is a number")
	}
}

func TestParseExportRefuses(t *testing.T) {
	for _, line := range []string{
		"", "/srv", "srv *(fsid=1)", "/srv/ *(fsid=1)", `"/srv a" *(fsid=1)`, `/srv\040a *(fsid=1)`, "/srv *(fsid=1) # all",
		"/srv -fsid=1 *(rw)", "/srv -x(fsid=1)", "/srv *", "/srv (fsid=1)", "/srv *(fsid=1", "/srv *(fsid=1))",
	} {
		if e, err := ParseExport(line); err == nil || errors.Is(err, ErrNoFSID) {
			t.Errorf("%q: %+v, %v", line, e, err)
		}
	}
	for _, line := range []string{"/srv *(rw)", "/srv *(fsid=)", "/srv a(fsid=1) b(rw)"} {
		if _, err := ParseExport(line); !errors.Is(err, ErrNoFSID) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// FuzzParseExport: a line that is accepted gives a path and clients as they stand in
// the line, and none of them could end a line of the kernel's caches or be an escape in it.
func FuzzParseExport(f *testing.F) {
	f.Add("/srv/export *(rw,async,no_root_squash,fsid=1)")
	f.Add("/srv a(fsid=1) b(fsid=2)")
	f.Fuzz(func(t *testing.T, line string) {
		e, err := ParseExport(line)
		if err != nil {
			return
		}
		if len(e.Clients) == 0 || e.Path[0] != '/' || quote(e.Path) != e.Path {
			t.Fatalf("%q: %+v", line, e)
		}
		for _, c := range e.Clients {
			if c.Name == "" || c.FSID == "" || quote(c.Name) != c.Name || !strings.Contains(line, c.Name+"(") {
				t.Fatalf("%q: %+v", line, c)
			}
		}
	})
}

func TestQuote(t *testing.T) {
	if got := quote("/a b\\c\td\n"); got != `/a\040b\134c\011d\012` {
		t.Errorf("%q", got)
	}
}

// TestTable encodes lines as exportfs(8) of nfs-utils 2.6.2 writes them; the
// numbers are the flags of include/uapi/linux/nfsd/export.h.
func TestTable(t *testing.T) {
	const line = "/srv/export\t*(rw,async,wdelay,hide,nocrossmnt,secure,no_root_squash,no_all_squash,no_subtree_check,secure_locks,acl,no_pnfs,fsid=1,anonuid=65534,anongid=65534,sec=sys,rw,secure,no_root_squash,no_all_squash)\n"
	table := parseTable(line + strings.Replace(line, "*(rw,async", "10.0.0.1(ro,sync", 1))
	tests := []struct{ client, want string }{
		{"*", "9264 65534 65534 1 secinfo 1 1 9264"},
		{"10.0.0.1", "9249 65534 65534 1 secinfo 1 1 9249"},
	}
	for _, tt := range tests {
		if got, ok := optionsOf(table, "/srv/export", tt.client); !ok || got != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.client, got, ok, tt.want)
		}
	}
	if got, ok := optionsOf(table, "/srv", "*"); ok {
		t.Errorf("another directory: %q", got)
	}
	// Options that we do not know are left to mountd.
	for _, old := range [][2]string{{"sec=sys", "sec=krb5"}, {"fsid=1", "fsid=12345678-1234-1234-1234-123456789abc"}, {"acl", "refer=/x@y"}, {"anonuid=65534,", ""}, {"anongid=65534", "anongid=-2"}} {
		if got, ok := optionsOf(parseTable(strings.Replace(line, old[0], old[1], 1)), "/srv/export", "*"); ok {
			t.Errorf("%v: %q", old, got)
		}
	}
}

func FuzzTable(f *testing.F) {
	f.Add("/srv\t*(rw,sync,fsid=1,anonuid=1,anongid=1,sec=sys,rw)\n")
	f.Add("/srv\t*\n/x\ty(\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, e := range parseTable(text) {
			s, ok := e.encode()
			if ok && (strings.ContainsAny(s, "\n\\") || !slices.ContainsFunc(e.options, func(o string) bool { return strings.HasPrefix(o, "fsid=") })) {
				t.Fatalf("%+v: %q", e, s)
			}
		}
	})
}
