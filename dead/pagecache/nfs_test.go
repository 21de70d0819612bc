package pagecache_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// The offsets of the made-up NFS client's structures, in bytes.
const (
	rqPage, rqIndex, rqStart, rqLen, rqFlags, rqNext, rqHead, rqSize = 0, 8, 16, 20, 24, 32, 40, 48

	rqMapped = 1 // bit number of PG_MAPPED
)

func remoteTypes() []btf.Type {
	u32, u64 := &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	return append(types(),
		&btf.Struct{Name: "nfs_page", Size: rqSize, Members: []btf.Member{field("wb_page", rqPage, u64), field("wb_index", rqIndex, u64),
			field("wb_pgbase", rqStart, u32), field("wb_bytes", rqLen, u32), field("wb_flags", rqFlags, u64), field("wb_this_page", rqNext, u64), field("wb_head", rqHead, u64)}},
		&btf.Struct{Name: "nfs_server", Size: 16, Members: []btf.Member{field("nfs_client", 0, u64), field("super", 8, u64)}},
		&btf.Struct{Name: "nfs_client", Size: 8, Members: []btf.Member{field("cl_hostname", 0, u64)}},
		&btf.Enum{Size: 4, Values: []btf.EnumValue{{Name: "PG_BUSY", Value: 0}, {Name: "PG_MAPPED", Value: rqMapped}}})
}

// remote returns a world whose file system is on the server "srv", and the top of a mount of it.
func remote(t testing.TB, export string) (w *world, top addr.Virt) {
	w = newWorld(t)
	w.kind("nfs4")
	server, client := w.alloc(16), w.alloc(8)
	w.PutU64(w.sb+sbInfo, uint64(server))
	w.PutU64(server, uint64(client))
	w.PutU64(server+8, uint64(w.sb))
	w.PutU64(client, uint64(w.text("srv")))
	top = w.dentry("/", 0, 0)
	w.PutU64(top+deData, uint64(w.text(export)))
	return w, top
}

func (w *world) text(s string) addr.Virt {
	at := w.alloc(len(s) + 1)
	w.Put(at, []byte(s))
	return at
}

// requests gives a page a ring of requests that cover stretches of its bytes.
func (w *world) requests(page addr.Virt, index uint64, spans ...addr.Span) []addr.Virt {
	var ring []addr.Virt
	for range spans {
		ring = append(ring, w.alloc(rqSize))
	}
	for i, s := range spans {
		at := ring[i]
		w.PutU64(at+rqPage, uint64(page))
		w.PutU64(at+rqIndex, index)
		w.PutU32(at+rqStart, uint32(s.Off))
		w.PutU32(at+rqLen, uint32(s.Len()))
		w.PutU64(at+rqFlags, 1<<rqMapped)
		w.PutU64(at+rqNext, uint64(ring[(i+1)%len(ring)]))
		w.PutU64(at+rqHead, uint64(ring[0]))
	}
	w.PutU64(page+pgPrivate, uint64(ring[0]))
	return ring
}

// TestRequests checks that the bytes of a page that its server may not have are those of its requests, whether
// the page is marked or not, and that requests that contradict the page are refused.
func TestRequests(t *testing.T) {
	const private = 1 << pgPrivateBit
	one := func(flags uint64, spoil func(w *world, ring []addr.Virt), spans ...addr.Span) func(w *world, i addr.Virt) {
		return func(w *world, i addr.Virt) {
			p := w.page(i, 1, flags, 'a')
			ring := w.requests(p, 1, spans...)
			if spoil != nil {
				spoil(w, ring)
			}
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: p}, 1))
		}
	}
	part := addr.Span{Off: 100, End: 300}
	bad := []string{"1+1 implausible buffers"}
	for name, tc := range map[string]struct {
		build func(w *world, i addr.Virt)
		want  []string
	}{
		"a part of a page that was never filled": {one(1<<pgDirty|private, nil, part), []string{"a[4196,4396)"}},
		"a part of one that was":                 {one(good|private, nil, part), []string{"a[4196,4396)"}},
		"split while it was sent":                {one(good|private, nil, addr.Span{Off: 200, End: 300}, part, addr.Span{Off: 4000, End: 4096}), []string{"a[4196,4396)", "a[8096,8192)"}},
		"sent and not committed": {func(w *world, i addr.Virt) {
			p := w.page(i, 1, 1<<pgUptodate|private, 'a')
			w.requests(p, 1, addr.Span{End: 4096})
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: p, 2: w.page(i, 2, 1<<pgUptodate, 'b')}))
		}, []string{"a[4096,8192)"}},
		"a dirty page without a request": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, good, 'a'), 2: w.page(i, 2, 1<<pgDirty, 'b')}, 1, 2))
		}, []string{"a[4096,8192)", "2+1 page not uptodate"}},
		"of another page":   {one(good|private, func(w *world, r []addr.Virt) { w.PutU64(r[0]+rqPage, uint64(kerneltest.MemMap)) }, part), bad},
		"of another index":  {one(good|private, func(w *world, r []addr.Virt) { w.PutU64(r[0]+rqIndex, 2) }, part), bad},
		"of nothing":        {one(good|private, nil, addr.Span{Off: 5, End: 5}), bad},
		"beyond the page":   {one(good|private, nil, addr.Span{Off: 4000, End: 4097}), bad},
		"not attached":      {one(good|private, func(w *world, r []addr.Virt) { w.PutU64(r[0]+rqFlags, 1) }, part), bad},
		"a ring that ends":  {one(good|private, func(w *world, r []addr.Virt) { w.PutU64(r[1]+rqNext, 0) }, part, part), bad},
		"a ring that turns": {one(good|private, func(w *world, r []addr.Virt) { w.PutU64(r[2]+rqNext, uint64(r[1])) }, part, part, part), bad},
		"of another ring":   {one(good|private, func(w *world, r []addr.Virt) { w.PutU64(r[1]+rqHead, uint64(r[1])) }, part, part), bad},
		"no request at all": {one(good|private, func(w *world, r []addr.Virt) { w.Put(r[0], make([]byte, rqSize)) }, part), bad},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := remote(t, "srv:/x")
			i := w.file(20, "file", 100*addr.PageSize)
			tc.build(w, i)
			w.Finish(remoteTypes()...)
			w.checkUnsaved(t, tc.want)
		})
	}
}

// checkUnsaved checks the unsaved bytes of each file of a world.
func (w *world) checkUnsaved(t *testing.T, want []string) {
	t.Helper()
	c, s := w.open(t)
	for inode, err := range c.Dirty(s) {
		if err != nil {
			t.Fatal(err)
		}
		if got := unsaved(c, s, inode, w.Mem); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestExports checks that files have the paths that they have on their server, whichever top they were reached by.
func TestExports(t *testing.T) {
	for export, want := range map[string]string{
		"srv:/pub/data": "pub/data/dir/file", "srv:/": "dir/file", "[fe80::1]:/pub/": "pub/dir/file", "srv:/a:/b": "a:/b/dir/file",
		"": "", "srv": "", "/x:/y": "", ":/y": "",
	} {
		w, top := remote(t, export)
		i := w.file(20, "", 10)
		dir := w.dentry("dir", top, 0)
		w.dentry("file", dir, i)
		w.Finish(remoteTypes()...)
		c, s := w.open(t)
		server, err := c.Server(s)
		if err != nil || server != "srv" {
			t.Errorf("%q, %v", server, err)
		}
		paths := c.Paths(s)
		for inode, err := range c.Dirty(s) {
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time the top is remembered
				if got, err := paths.Of(inode); got != want || (err == nil) != (want != "") {
					t.Errorf("%q: %q, %v, want %q", export, got, err, want)
				}
			}
		}
	}
}

// busyRemote is a world with a file system of a server and requests of all kinds.
func busyRemote(t testing.TB) *world {
	w, top := remote(t, "srv:/x")
	for n := range 3 {
		i := w.file(uint64(20+n), "", 90*addr.PageSize)
		w.dentry(fmt.Sprint("file", n), top, i)
		up := w.node(i, 0, 0, 6, nil, 0, 1)
		p, q, f := w.page(i, 5, 1<<pgDirty|1<<pgPrivateBit, 'a'), w.page(i, 6, good|1<<pgPrivateBit, 'b'), w.folio(i, 8, 2, 'c')
		w.PutU64(f+pgFlags, uint64(w.u64(f+pgFlags))|1<<pgPrivateBit)
		w.requests(p, 5, addr.Span{Off: 1, End: 9}, addr.Span{Off: 9, End: 4096})
		w.requests(q, 6, addr.Span{End: 4096})
		w.requests(f, 8, addr.Span{Off: 10, End: 9000}, addr.Span{Off: 12000, End: 16384})
		w.PutU64(up+ndSlots, uint64(2+w.node(i, up, 0, 0, map[int]addr.Virt{5: p, 6: q, 8: f, 9: 8<<2 | 2}, 5, 6, 8)))
		w.PutU64(up+ndSlots+8, uint64(2+w.node(i, up, 1, 0, map[int]addr.Virt{3: w.page(i, 67, good, 'd')}, 3)))
		w.head(i, 2+up)
	}
	w.Finish(remoteTypes()...)
	return w
}

// FuzzRemote is FuzzWalks with a file system of a server.
func FuzzRemote(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 1})
	f.Add([]byte{9, 200, 1, 0, 255, 7, 30, 0, 0, 0, 0, 7})
	whole := busyRemote(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		whole.walk(t, script, func(c *pagecache.Cache, s *pagecache.Superblock) { _, _ = c.Server(s) })
	})
}
