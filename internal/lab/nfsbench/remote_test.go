package nfsbench

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	gonfs "github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/lab/nfs3"
	"understudy.dev/understudy/internal/live/netns"
)

// lab makes a network whose bridge has an address, at which go-nfs serves a directory.
func lab(t *testing.T, dir string) (client *netns.Namespace, address string) {
	t.Helper()
	l, err := netlab.NewLab(netip.MustParsePrefix("10.9.0.1/24"))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	address = "10.9.0.2"
	if err := l.Services.AddAddr(netlab.BridgeName, netip.MustParsePrefix(address+"/24")); err != nil {
		t.Fatal(err)
	}
	gonfs.Log.SetLevel(gonfs.PanicLevel)
	h := helpers.NewCachingHandler(helpers.NewNullAuthHandler(osfs.New(dir)), 1024)
	for _, port := range []int{mountPort, nfs3.Port} {
		listener, err := l.Services.Listen("tcp", address+":"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		go gonfs.Serve(listener, h)
	}
	return l.Client, address
}

// TestBulk checks that what was written is found, and that what was spoiled is not.
func TestBulk(t *testing.T) {
	dir := t.TempDir()
	in, address := lab(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := dial(ctx, in, "tcp", address, "/", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := Bulk{Dir: "bulk", Seed: 5, Files: 7, FileBytes: 2 * bulkPiece}
	if err := os.Mkdir(filepath.Join(dir, b.Dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.write(ctx, r); err != nil {
		t.Fatal(err)
	}
	if lost, err := b.check(ctx, r); lost != 0 || err != nil {
		t.Errorf("%d bytes lost, %v", lost, err)
	}
	got, err := r.readDir(ctx, "/")
	if names := strings.Join(slices.Sorted(keys(got)), " "); err != nil || names != b.Dir || got[b.Dir] != nil {
		t.Errorf("the export has %q, %v", names, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, b.name(3)), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{0, 0, 0, 0, 0, 0, 0, 0}, bulkPiece+1)
	if err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, b.name(4)), bulkPiece+100); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, b.name(5))); err != nil {
		t.Fatal(err)
	}
	want := int64(RecordBytes + bulkPiece + b.FileBytes)
	if lost, err := b.check(ctx, r); lost != want || err != nil {
		t.Errorf("%d bytes lost, want %d, %v", lost, want, err)
	}
}

func keys(m map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func TestPing(t *testing.T) {
	in, address := lab(t, t.TempDir())
	m := newMoments("ping")
	if err := ping(some(t, m), in, address, m); err != nil {
		t.Fatal(err)
	}
	if s := m.end(); s.Done < 40 {
		t.Errorf("%d replies", s.Done)
	}
	none := newMoments("ping")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := ping(ctx, in, "10.9.0.77", none); err != nil {
		t.Fatal(err)
	}
	if s := none.end(); s.Done != 0 || s.Stall(0) < 90*time.Millisecond {
		t.Errorf("%d replies of nobody, gaps %v", s.Done, s.Gaps)
	}
}

func TestChecksum(t *testing.T) {
	// RFC 1071, 3: the sum of these is 0xddf2.
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("%#x", got)
	}
	if b := echo(echoRequest, 1, 2); checksum(b) != 0 {
		t.Errorf("%x does not sum up to nothing", b)
	}
}

func TestTable(t *testing.T) {
	runs := []*Report{
		{Row: "b", PingGapMS: 3, StallMS: map[string]float64{"v3/TCP files": 10, "v3/TCP names": 20, "v4.2 files": 5}},
		{Row: "a", PingGapMS: 7, BytesLost: 4096, Errors: []string{"x"}},
		{Row: "b", PingGapMS: 5, StallMS: map[string]float64{"v3/TCP files": 40}},
		{Row: "b", Broken: "it broke off"},
	}
	var b strings.Builder
	if err := WriteTable(&b, Metrics(runs)); err != nil {
		t.Fatal(err)
	}
	want := `| | ping gap | v3/TCP stall | v3/UDP stall | v4.2 stall | client errors | bytes lost | n |
|---|---|---|---|---|---|---|---|
| b | 4 ms (3 to 5) | 30 ms (20 to 40) | 0 ms | 2 ms (0 to 5) | 0 | 0 | 2 |
| a | 7 ms | 0 ms | 0 ms | 0 ms | 1 | 4096 | 1 |
`
	if b.String() != want {
		t.Errorf("got\n%s", b.String())
	}
}

func TestDirty(t *testing.T) {
	if n, err := dirty("MemFree: 1 kB\nDirty:            92164 kB\nWriteback: 0 kB\n"); n != 92164<<10 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := dirty("MemFree: 1 kB\n"); err == nil {
		t.Error("nothing is a number")
	}
}
