package pagecache_test

import (
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// The offsets of the made-up SMB client's structures, in bytes.
const (
	shContext, shFlags, shWithin, shRoot, shSize = 0, 8, 16, 24, 32

	nfGroup, nfOffset, nfLength, nfSize = 0, 8, 12, 16
)

func shareTypes() []btf.Type {
	u32, u64 := &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	return append(types(),
		&btf.Struct{Name: "cifs_sb_info", Size: shSize, Members: []btf.Member{field("ctx", shContext, u64), field("mnt_cifs_flags", shFlags, u32),
			field("prepath", shWithin, u64), field("root", shRoot, u64)}},
		&btf.Struct{Name: "smb3_fs_context", Size: 16, Members: []btf.Member{field("UNC", 8, u64)}},
		&btf.Struct{Name: "netfs_folio", Size: nfSize, Members: []btf.Member{field("netfs_group", nfGroup, u64),
			field("dirty_offset", nfOffset, u32), field("dirty_len", nfLength, u32)}})
}

// shared returns a world whose file system is a share, and the address of its cifs_sb_info.
func shared(t testing.TB, name string) (w *world, info addr.Virt) {
	w = newWorld(t)
	w.kind("cifs")
	info = w.alloc(shSize)
	context := w.alloc(16)
	w.PutU64(w.sb+sbInfo, uint64(info))
	w.PutU64(info+shContext, uint64(context))
	w.PutU64(info+shRoot, uint64(w.root))
	w.PutU64(context+8, uint64(w.text(name)))
	return w, info
}

// streamed records for a page which of its bytes were written to.
func (w *world) streamed(page addr.Virt, off, length uint32) addr.Virt {
	at := w.alloc(nfSize)
	w.PutU32(at+nfOffset, off)
	w.PutU32(at+nfLength, length)
	w.PutU64(page+pgPrivate, uint64(at+1))
	return at
}

// TestStreamed checks which bytes of a page an SMB server does not have: all of them, or, for a page that was
// never filled, those that were written to. Contradictions are refused.
func TestStreamed(t *testing.T) {
	const private = 1 << pgPrivateBit
	one := func(flags uint64, off, length uint32, spoil func(w *world, i, p, s addr.Virt)) func(w *world, i addr.Virt) {
		return func(w *world, i addr.Virt) {
			p := w.page(i, 1, flags, 'a')
			s := w.streamed(p, off, length)
			if spoil != nil {
				spoil(w, i, p, s)
			}
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: p}, 1))
		}
	}
	bad := []string{"1+1 implausible buffers"}
	for name, tc := range map[string]struct {
		build func(w *world, i addr.Virt)
		want  []string
	}{
		"whole pages": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, good, 'a'), 2: w.page(i, 2, 1<<pgUptodate|1<<pgWriteback, 'b')}, 1, 2))
		}, []string{"a[4096,8192)", "b[8192,12288)"}},
		"a part of a page":                 {one(1<<pgDirty|private, 100, 200, nil), []string{"a[4196,4396)"}},
		"a part that is being sent":        {one(1<<pgWriteback|private, 100, 200, nil), []string{"a[4196,4396)"}},
		"the mark of what is about to be":  {one(private, 0, 4095, nil), []string{"a[4096,8191)"}},
		"filled, and the record not gone":  {one(good|private, 100, 200, nil), []string{"a[4096,8192)"}},
		"filled while it was locked":       {one(good|private|1<<pgLocked, 100, 200, func(w *world, i, _, _ addr.Virt) { w.PutU64(i+inRwsem, 1) }), []string{"a[4096,8192)"}},
		"locked by who sends or reads":     {one(1<<pgDirty|private|1<<pgLocked, 100, 200, nil), []string{"a[4196,4396)"}},
		"being written to":                 {one(1<<pgDirty|private|1<<pgLocked, 100, 200, func(w *world, i, _, _ addr.Virt) { w.PutU64(i+inRwsem, 1) }), bad},
		"another one being written to":     {one(1<<pgDirty|private, 100, 200, func(w *world, i, _, _ addr.Virt) { w.PutU64(i+inRwsem, 1) }), []string{"a[4196,4396)"}},
		"of nothing":                       {one(1<<pgDirty|private, 100, 0, nil), bad},
		"beyond the page":                  {one(1<<pgDirty|private, 100, 3997, nil), bad},
		"far beyond the page":              {one(1<<pgDirty|private, 1<<31, 1<<31, nil), bad},
		"of a group":                       {one(1<<pgDirty|private, 100, 200, func(w *world, _, _, s addr.Virt) { w.PutU64(s+nfGroup, 8) }), bad},
		"no record":                        {one(1<<pgDirty|private, 100, 200, func(w *world, _, p, _ addr.Virt) { w.PutU64(p+pgPrivate, 1) }), bad},
		"a private word without its bit":   {one(1<<pgDirty, 100, 200, nil), []string{"1+1 page not uptodate"}},
		"not filled, and nothing is known": {one(1<<pgDirty|private, 100, 200, func(w *world, _, p, _ addr.Virt) { w.PutU64(p+pgPrivate, 0) }), []string{"1+1 page not uptodate"}},
		"a private word of another's":      {one(good|private, 100, 200, func(w *world, _, p, s addr.Virt) { w.PutU64(p+pgPrivate, uint64(s)) }), bad},
		"only for the cache of this disk":  {one(good|private, 100, 200, func(w *world, _, p, _ addr.Virt) { w.PutU64(p+pgPrivate, 0x356) }), nil},
		"for the cache, and not filled":    {one(1<<pgDirty|private, 100, 200, func(w *world, _, p, _ addr.Virt) { w.PutU64(p+pgPrivate, 0x356) }), bad},
		"a write of the file to it failed": {one(1<<pgDirty|private, 100, 200, func(w *world, i, _, _ addr.Virt) { w.PutU32(i+inWrong, 5); w.PutU64(i+inSize, 8192) }), []string{"a[4196,4396)", "0+2 a write of it failed", "1+1 a write of it failed"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := shared(t, `\\srv\pub`)
			i := w.file(20, "file", 100*addr.PageSize)
			w.PutU64(i+inPages, 1)
			tc.build(w, i)
			w.Finish(shareTypes()...)
			w.checkUnsaved(t, tc.want)
		})
	}
}

// TestShares checks that files of a share have the paths that they have on the server: below the name of the
// share, and below the directory that was mounted, if the superblock begins there.
func TestShares(t *testing.T) {
	for _, tc := range []struct {
		name, within string
		flags        uint32
		spoil        func(w *world, info addr.Virt)
		server, path string
	}{
		{name: `\\srv\pub`, server: "srv", path: "pub/dir/file"},
		{name: `\\fe80::1\pub$`, within: `a\b`, flags: 0x1000000, server: "fe80::1", path: "pub$/a/b/dir/file"},
		{name: `\\srv\pub`, within: `a\b/c`, flags: 0x1000040, server: "srv", path: `pub/a\b/c/dir/file`},
		{name: `\\srv\pub`, within: "a", server: "srv", path: "pub/dir/file"},
		{name: `\\srv\pub`, flags: 0x1000000, server: "srv", path: "pub/dir/file"},
		{name: `\\srv\`}, {name: `\\srv`}, {name: `\\\pub`}, {name: `\srv\pub`}, {name: `//srv/pub`}, {name: `\\srv\pub\a`}, {name: ""},
		{name: `\\srv\pub`, spoil: func(w *world, info addr.Virt) { w.PutU64(info+shRoot, 0) }},
		{name: `\\srv\pub`, spoil: func(w *world, _ addr.Virt) { w.PutU64(w.root+deSB, 8) }},
		{name: `\\srv\pub`, spoil: func(w *world, info addr.Virt) { w.PutU64(info+shContext, 0) }},
	} {
		w, info := shared(t, tc.name)
		w.PutU32(info+shFlags, tc.flags)
		if tc.within != "" {
			w.PutU64(info+shWithin, uint64(w.text(tc.within)))
		}
		i := w.file(20, "", 10)
		dir := w.dentry("dir", w.root, 0)
		w.dentry("file", dir, i)
		if tc.spoil != nil {
			tc.spoil(w, info)
		}
		w.Finish(shareTypes()...)
		c, s := w.open(t)
		if server, err := c.Server(s); server != tc.server || (err == nil) != (tc.server != "") {
			t.Errorf("%q: %q, %v, want %q", tc.name, server, err, tc.server)
		}
		paths := c.Paths(s)
		for inode, err := range c.Dirty(s) {
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time the top is remembered
				if got, err := paths.Of(inode); got != tc.path || (err == nil) != (tc.path != "") {
					t.Errorf("%q: %q, %v, want %q", tc.name, got, err, tc.path)
				}
			}
		}
	}
}

// busyShare is a world with a share and pages of all kinds.
func busyShare(t testing.TB) *world {
	w, info := shared(t, `\\srv\pub`)
	w.PutU32(info+shFlags, 0x1000000)
	w.PutU64(info+shWithin, uint64(w.text(`a\b`)))
	for n := range 3 {
		i := w.file(uint64(20+n), "file", 90*addr.PageSize)
		p, q, f := w.page(i, 5, 1<<pgDirty|1<<pgPrivateBit, 'a'), w.page(i, 6, good, 'b'), w.folio(i, 8, 2, 'c')
		w.PutU64(f+pgFlags, uint64(w.u64(f+pgFlags))&^(1<<pgUptodate)|1<<pgPrivateBit)
		w.streamed(p, 1, 9)
		w.streamed(f, 10, 9000)
		w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{5: p, 6: q, 8: f, 9: 8<<2 | 2, 10: 8<<2 | 2, 11: 8<<2 | 2}, 5, 6, 8))
	}
	w.Finish(shareTypes()...)
	return w
}

// FuzzShare is FuzzWalks with a share.
func FuzzShare(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 1})
	f.Add([]byte{9, 200, 1, 0, 255, 7, 30, 0, 0, 0, 0, 7})
	whole := busyShare(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		whole.walk(t, script, func(c *pagecache.Cache, s *pagecache.Superblock) { _, _ = c.Server(s) })
	})
}
