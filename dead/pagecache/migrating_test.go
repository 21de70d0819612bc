package pagecache_test

import (
	"errors"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// TestMigrating checks that bytes of a page are not taken while the kernel may still have to copy them from the page whose place it
// took, and are taken in the states in which others hold the same locks.
func TestMigrating(t *testing.T) {
	const (
		busy  = 1<<pgLocked | 1<<pgDirty | 1<<pgPrivateBit
		up    = 1<<bhUptodate | 1<<bhMapped
		ready = up | 1<<bhDirty
		lock  = 1 << bhLock
		moved = ready | lock
	)
	const refused = "0+1 page not uptodate"
	for name, tc := range map[string]struct {
		kind   string
		flags  uint64
		states []uint64 // of buffers
		bitmap uint64   // of blocks
		held   bool     // all that memory holds is asked for
		want   []string
	}{
		"one buffer":                        {flags: busy, states: []uint64{moved}, want: []string{refused}},
		"four buffers":                      {flags: busy, states: []uint64{moved, up | lock, lock, moved}, want: []string{refused}},
		"copied":                            {flags: busy | 1<<pgUptodate, states: []uint64{moved}, want: []string{"a[0,4096)"}},
		"under writeback":                   {flags: busy | 1<<pgWriteback, states: []uint64{up | lock | 1<<bhAsync}, want: []string{"a[0,4096)"}},
		"about to be under writeback":       {flags: busy, states: []uint64{up | lock | 1<<bhAsync, lock, ready, up}, want: []string{"a[0,1024)", "a[2048,3072)"}},
		"written to, the rest was read":     {flags: busy, states: []uint64{ready, lock, 0, up}, want: []string{"a[0,1024)"}},
		"written to":                        {flags: busy, states: []uint64{ready}, want: []string{"a[0,4096)"}},
		"not locked":                        {flags: busy &^ (1 << pgLocked), states: []uint64{moved}, want: []string{"a[0,4096)"}},
		"all blocks of XFS":                 {kind: "xfs", flags: busy, bitmap: 0xf, want: []string{refused}},
		"blocks of XFS that a writer fills": {kind: "xfs", flags: busy, bitmap: 0x7, want: []string{"a[0,3072)"}},
		"blocks of XFS under writeback":     {kind: "xfs", flags: busy | 1<<pgWriteback, bitmap: 0xf, want: []string{"a[0,4096)"}},
		"in memory only":                    {kind: "tmpf", flags: 1<<pgLocked | 1<<pgDirty, held: true, want: []string{refused}},
		"in memory only, copied":            {kind: "tmpf", flags: 1<<pgLocked | 1<<pgDirty | 1<<pgUptodate, held: true, want: []string{"a[0,4096)"}},
		"in memory only, a new page":        {kind: "tmpf", flags: 1 << pgLocked, held: true},
		"in memory only, preallocated":      {kind: "tmpf", flags: 1 << pgDirty, held: true},
		"a clean page on a disk":            {flags: 1<<pgLocked | 1<<pgDirty, held: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			file := w.file(9, "file", 4*addr.PageSize)
			p := w.page(file, 0, tc.flags, 'a')
			switch tc.kind {
			case "tmpf":
				w.Put(w.typeName, []byte("tmpfs\x00"))
			case "xfs":
				w.kind("xfs")
				w.blocks(file, p, 10, tc.bitmap)
			}
			if n := len(tc.states); n > 0 {
				w.buffersOf(p, w.data(p), uint64(addr.PageSize/n), tc.states)
			}
			w.head(file, p)
			w.PutU64(file+inPages, 1)
			w.Finish(types()...)
			c, s := w.open(t)
			for i, err := range c.Inodes(s) {
				if err != nil {
					t.Fatal(err)
				}
				pieces := c.Unsaved(s, i)
				if tc.held {
					pieces = c.Held(s, i)
				}
				if got := listed(pieces, w.Mem); !slices.Equal(got, tc.want) {
					t.Errorf("got %q, want %q", got, tc.want)
				}
			}
		})
	}
}

// TestMigratingDevice checks the same for the device's own pages.
func TestMigratingDevice(t *testing.T) {
	const (
		locked, private = uint64(1) << pgLocked, uint64(1) << pgPrivateBit
		up              = uint64(1)<<bhUptodate | 1<<bhMapped
		lock, dirty     = uint64(1) << bhLock, uint64(1) << bhDirty
	)
	for name, tc := range map[string]struct {
		flags, state uint64
		users        uint32
		refused      bool
		unsaved      int64 // bytes
	}{
		"clean":                     {flags: private, state: up},
		"changed":                   {flags: private | 1<<pgDirty, state: up | dirty, unsaved: 4096},
		"moved, clean":              {flags: locked | private, state: up | lock, refused: true},
		"moved, changed":            {flags: locked | private | 1<<pgDirty, state: up | lock | dirty, refused: true},
		"moved and copied":          {flags: locked | private | 1<<pgDirty | 1<<pgUptodate, state: up | lock | dirty, unsaved: 4096},
		"written, writeback waits":  {flags: locked | private, state: up | lock, users: 1, unsaved: 4096},
		"about to be in writeback":  {flags: locked | private, state: up | lock | 1<<bhAsync, unsaved: 4096},
		"written on its own":        {flags: private, state: up | lock, users: 1, unsaved: 4096},
		"the page is being written": {flags: private | 1<<pgWriteback, state: up | lock | 1<<bhAsync, unsaved: 4096},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.PutU64(w.sb+sbBlock, 4096)
			inode := w.device()
			p := w.page(inode, 0, tc.flags, 'a')
			w.buffersOf(p, w.data(p), 4096, []uint64{tc.state})
			w.PutU32(w.u64(p+pgPrivate)+bhCount, tc.users)
			w.head(inode, 2+w.node(inode, 0, 0, 0, map[int]addr.Virt{0: p}, 0))
			w.Finish(withDevice()...)
			c, s := w.open(t)
			d, err := c.Device(s, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, err := d.Meta(0, 4096)
			if tc.refused != (err != nil) || errors.Is(err, pagecache.ErrNotCached) || err == nil && b[0] != 'a' {
				t.Errorf("block: %v", err)
			}
			n, bad := int64(0), error(nil)
			for b, err := range d.Unsaved() {
				n, bad = n+b.Len, errors.Join(bad, err)
			}
			if tc.refused != (bad != nil) || n != tc.unsaved {
				t.Errorf("%d bytes are unsaved, %v", n, bad)
			}
		})
	}
}
