package pagecache_test

import (
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// TestBroken checks that the pages of a large folio whose memory is broken are refused, and the others are not.
func TestBroken(t *testing.T) {
	const private = good | 1<<pgHead | 1<<pgPrivateBit
	third := []string{"a[32768,40960)", "10+1 broken memory", "\x00[45056,49152)"}
	for name, tc := range map[string]struct {
		kind   string
		broken []int // pages of the folio
		each   bool  // each page has its own entry
		size   int64 // of the file, in pages
		build  func(w *world, folio addr.Virt)
		want   []string
	}{
		"the third":                     {kind: "ext4", broken: []int{2}, want: third},
		"the third, each with an entry": {kind: "ext4", broken: []int{2}, each: true, want: third},
		"the last, each with an entry":  {kind: "ext4", broken: []int{3}, each: true, want: []string{"a[32768,45056)", "11+1 broken memory"}},
		"two":                           {kind: "ext4", broken: []int{1, 3}, want: []string{"a[32768,36864)", "9+1 broken memory", "\x00[40960,45056)", "11+1 broken memory"}},
		"the first":                     {kind: "ext4", broken: []int{0}, want: []string{"8+4 broken memory"}},
		"beyond the end of the file":    {kind: "ext4", broken: []int{2}, size: 10, want: []string{"a[32768,49152)"}},
		"in memory only":                {kind: "tmpfs", broken: []int{2}, want: third},
		"of a server":                   {kind: "nfs4", broken: []int{2}, want: third},
		"of a server, beside a request": {kind: "nfs4", broken: []int{2}, build: func(w *world, f addr.Virt) {
			w.PutU64(f+pgFlags, private)
			w.requests(f, 8, addr.Span{Off: 10, End: 20})
		}, want: []string{"a[32778,32788)"}},
		"of a server, in the midst of some": {kind: "nfs4", broken: []int{2}, build: func(w *world, f addr.Virt) {
			w.PutU64(f+pgFlags, private)
			w.requests(f, 8, addr.Span{Off: 8000, End: 8200}, addr.Span{Off: 8300, End: 8400})
		}, want: []string{"\x00[40768,40960)", "10+1 broken memory"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := remote(t, "srv:/x")
			w.kind(tc.kind)
			if tc.size == 0 {
				tc.size = 100
			}
			file := w.file(20, "file", tc.size*addr.PageSize)
			f := w.folio(file, 8, 2, 'a')
			if tc.build != nil {
				tc.build(w, f)
			}
			for _, n := range tc.broken {
				at := f + addr.Virt(n*kerneltest.PageStruct) + pgFlags
				w.PutU64(at, uint64(w.u64(at))|1<<pgPoison)
			}
			slots, marked := map[int]addr.Virt{8: f, 9: 8<<2 | 2, 10: 8<<2 | 2, 11: 8<<2 | 2}, []int{8}
			if tc.each {
				slots, marked = map[int]addr.Virt{8: f, 9: f, 10: f, 11: f}, []int{8, 9, 10, 11}
			}
			w.head(file, 2+w.node(file, 0, 0, 0, slots, marked...))
			w.PutU64(file+inPages, 4)
			w.Finish(remoteTypes()...)
			w.checkUnsaved(t, tc.want)
			if tc.build == nil {
				w.checkHeld(t, tc.want)
			}
		})
	}
}

// TestBrokenDevice checks that a metadata block in broken memory is read neither from there nor from the
// disk, which may be older. The other blocks in its folio are read from memory.
func TestBrokenDevice(t *testing.T) {
	w := newWorld(t)
	w.device()
	inode := w.u64(w.u64(w.sb+sbBdev) + bdInode)
	f := w.folio(inode, 8, 2, 'a')
	w.PutU64(f+2*kerneltest.PageStruct+pgFlags, 1<<pgPoison)
	w.head(inode, 2+w.node(inode, 0, 0, 0, map[int]addr.Virt{8: f, 9: 8<<2 | 2, 10: 8<<2 | 2, 11: 8<<2 | 2}))
	w.Finish(withDevice()...)
	c, s := w.open(t)
	dev, err := c.Device(s, strings.NewReader(strings.Repeat("d", 16*addr.PageSize)))
	if err != nil {
		t.Fatal(err)
	}
	for block, want := range map[addr.Block]byte{7: 'd', 8: 'a', 9: 0, 10: '!', 11: 0, 12: 'd'} {
		b, err := dev.Meta(block, addr.PageSize)
		if (err != nil) != (want == '!') || err == nil && b[0] != want {
			t.Errorf("block %d: %v", block, err)
		}
	}
}
