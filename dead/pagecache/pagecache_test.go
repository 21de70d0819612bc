package pagecache_test

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

const good = 1<<pgUptodate | 1<<pgDirty

// unsaved lists the pieces of a file as "letter[off,end)", and its refusals.
func unsaved(c *pagecache.Cache, s *pagecache.Superblock, i *pagecache.Inode, mem []byte) []string {
	return listed(c.Unsaved(s, i), mem)
}

// listed lists pieces as "letter[off,end)", and refusals.
func listed(pieces iter.Seq2[pagecache.Piece, error], mem []byte) []string {
	var out []string
	for p, err := range pieces {
		var r *pagecache.Refusal
		switch {
		case errors.As(err, &r):
			out = append(out, fmt.Sprintf("%d+%d %v", r.Index, r.Pages, r.Reason))
		case err != nil:
			out = append(out, err.Error())
		default:
			out = append(out, fmt.Sprintf("%c[%d,%d)", mem[p.Phys], p.Off, p.End))
		}
	}
	return out
}

func TestUnsaved(t *testing.T) {
	const size = 100 * addr.PageSize
	for name, tc := range map[string]struct {
		build func(w *world, i addr.Virt)
		want  []string
	}{
		"one page in the head": {func(w *world, i addr.Virt) {
			w.head(i, w.page(i, 0, good, 'a'))
		}, []string{"a[0,4096)"}},
		"one clean page in the head": {func(w *world, i addr.Virt) {
			w.head(i, w.page(i, 0, 1<<pgUptodate, 'a'))
			w.PutU32(i+inTreeFlags, 0x21)
		}, nil},
		"a shadow in the head": {func(w *world, i addr.Virt) { w.head(i, 0x1235) }, nil},
		"only marked slots": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{
				1: w.page(i, 1, good, 'a'), 2: w.page(i, 2, 1<<pgUptodate, 'b'), 63: w.page(i, 63, 1<<pgUptodate|1<<pgWriteback, 'c'),
			}, 1, 63))
		}, []string{"a[4096,8192)", "c[258048,262144)"}},
		"an unsaved page without a mark": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, good, 'a'), 2: w.page(i, 2, good, 'b')}, 1))
		}, []string{"a[4096,8192)", "0+100 damaged xarray"}},
		"two levels": {func(w *world, i addr.Virt) {
			top := w.node(i, 0, 0, 6, nil, 1)
			w.PutU64(top+ndSlots+8, uint64(2+w.node(i, top, 1, 0, map[int]addr.Virt{3: w.page(i, 67, good, 'a')}, 3)))
			w.head(i, 2+top)
		}, []string{"a[274432,278528)"}},
		"beyond the end": {func(w *world, i addr.Virt) {
			top := w.node(i, 0, 0, 6, nil, 1)
			w.PutU64(top+ndSlots+8, uint64(2+w.node(i, top, 1, 0, map[int]addr.Virt{60: w.page(i, 124, good, 'a')}, 60)))
			w.head(i, 2+top)
		}, nil},
		"a node that hangs elsewhere": {func(w *world, i addr.Virt) {
			top := w.node(i, 0, 0, 6, nil, 0, 1)
			w.PutU64(top+ndSlots, uint64(2+w.node(i, top, 1, 0, nil, 3)))
			w.PutU64(top+ndSlots+8, uint64(2+w.node(i, top, 1, 0, map[int]addr.Virt{3: w.page(i, 67, good, 'a')}, 3)))
			w.head(i, 2+top)
		}, []string{"0+64 damaged xarray", "a[274432,278528)"}},
		"a tree that contains itself": {func(w *world, i addr.Virt) {
			top := w.node(i, 0, 0, 6, nil, 0)
			w.PutU64(top+ndSlots, uint64(2+top))
			w.head(i, 2+top)
		}, []string{"0+64 damaged xarray"}},
		"a head that is nowhere": {func(w *world, i addr.Virt) {
			w.head(i, kerneltest.DirectMap+1<<40+2)
		}, []string{"0+100 damaged xarray"}},
		"no pages in slots": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: 0, 2: 0x4321, 3: 1026, 4: 0x1238}, 1, 2, 3, 4))
		}, []string{"1+1 no page in slot", "2+1 no page in slot", "3+1 no page in slot", "4+1 unreadable"}},
		"direct access": {func(w *world, i addr.Virt) {
			w.PutU32(i+inFlags, pagecache.FlagDAX)
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: 0x4321}, 1))
		}, []string{"1+1 direct access file"}},
		"a page of another file": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i+64, 1, good, 'a')}, 1))
		}, []string{"1+1 page of another file"}},
		"a page of another index": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 2, good, 'a')}, 1))
		}, []string{"1+1 page of another index"}},
		"a broken page": {func(w *world, i addr.Virt) {
			w.head(i, w.page(i, 0, good|1<<pgPoison, 'a'))
		}, []string{"0+1 broken memory"}},
		"a page that was never filled": {func(w *world, i addr.Virt) {
			w.head(i, w.page(i, 0, 1<<pgDirty, 'a'))
		}, []string{"0+1 page not uptodate"}},
		"buffers of one": {func(w *world, i addr.Virt) {
			p := w.page(i, 5, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.buffers(p, w.data(p), [4]uint64{0, 1<<bhUptodate | 1<<bhDirty, 1 << bhUptodate, 1<<bhUptodate | 1<<bhAsync})
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{5: p}, 5))
		}, []string{"a[21504,22528)", "a[23552,24576)"}},
		"no buffer of one": {func(w *world, i addr.Virt) {
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.buffers(p, w.data(p), [4]uint64{1 << bhDirty, 1 << bhUptodate, 0, 0})
			w.head(i, p)
		}, []string{"0+1 page not uptodate"}},
		"some buffers of one": {func(w *world, i addr.Virt) {
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.buffers(p, w.data(p), [4]uint64{1 << bhDirty, 1<<bhUptodate | 1<<bhDirty, 0, 0})
			w.head(i, p)
		}, []string{"a[1024,2048)", "0+1 page not uptodate"}},
		"buffers that a journal has": {func(w *world, i addr.Virt) {
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.buffers(p, w.data(p), [4]uint64{1 << bhUptodate, 1<<bhUptodate | 1<<21, 0, 0})
			w.head(i, p)
		}, []string{"a[1024,2048)"}},
		"a page of which all that was written is cut off": {func(w *world, i addr.Virt) {
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.buffers(p, w.data(p), [4]uint64{1 << bhUptodate, 0, 0, 0})
			w.head(i, p)
		}, nil},
		"buffers of another page": {func(w *world, i addr.Virt) {
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.buffers(p, w.data(p)+1024, [4]uint64{3, 3, 3, 3})
			w.head(i, p)
		}, []string{"0+1 implausible buffers"}},
		"blocks of one": {func(w *world, i addr.Virt) {
			w.kind("xfs")
			p := w.page(i, 5, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.blocks(i, p, 9, 0xa6)
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{5: p}, 5))
		}, []string{"a[20992,22016)", "a[23040,23552)", "a[24064,24576)"}},
		"blocks of a large folio": {func(w *world, i addr.Virt) {
			w.kind("xfs")
			p := w.folio(i, 8, 2, 'a')
			w.PutU64(p+pgFlags, 1<<pgDirty|1<<pgHead|1<<pgPrivateBit)
			w.blocks(i, p, 12, 0xf6) // the upper bits are of another bitmap
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{8: p}, 8))
		}, []string{"\x00[36864,45056)"}}, // only the first page has a letter
		"no block of one": {func(w *world, i addr.Virt) {
			w.kind("xfs")
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.blocks(i, p, 10, 0)
			w.head(i, p)
		}, []string{"0+1 page not uptodate"}},
		"a page that is one block": {func(w *world, i addr.Virt) {
			w.kind("xfs")
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.blocks(i, p, 12, 1)
			w.head(i, p)
		}, []string{"0+1 page not uptodate"}},
		"blocks larger than any number": {func(w *world, i addr.Virt) {
			w.kind("xfs")
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.blocks(i, p, 64, 1)
			w.head(i, p)
		}, []string{"0+1 page not uptodate"}},
		"blocks larger than any positive number": {func(w *world, i addr.Virt) {
			w.kind("xfs")
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.blocks(i, p, 63, 1)
			w.head(i, p)
		}, []string{"0+1 page not uptodate"}},
		"a state of blocks that is nowhere": {func(w *world, i addr.Virt) {
			w.kind("xfs")
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.blocks(i, p, 10, 1)
			w.PutU64(p+pgPrivate, 1)
			w.head(i, p)
		}, []string{"0+1 implausible buffers"}},
		"blocks in a file system that is not understood": {func(w *world, i addr.Virt) {
			w.kind("f2fs")
			p := w.page(i, 0, 1<<pgDirty|1<<pgPrivateBit, 'a')
			w.blocks(i, p, 10, 1)
			w.head(i, p)
		}, []string{"0+1 page not uptodate"}},
		"a large folio": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{8: w.folio(i, 8, 2, 'a'), 9: 8<<2 | 2, 10: 8<<2 | 2, 11: 8<<2 | 2}, 8, 10))
		}, []string{"a[32768,49152)"}},
		"a large folio by its sibling": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{8: w.folio(i, 8, 2, 'a'), 9: 8<<2 | 2}, 9))
		}, []string{"a[32768,49152)", "0+100 damaged xarray"}},
		"a folio with an entry for each page": {func(w *world, i addr.Virt) {
			f := w.folio(i, 8, 2, 'a')
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{8: f, 9: f, 10: f, 11: f}, 8, 9, 10, 11))
		}, []string{"a[32768,49152)"}},
		"a folio of a size that cannot be": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{8: w.folio(i, 8, 30, 'a')}, 8))
		}, []string{"8+1 implausible folio"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			file := w.file(17, "file", size)
			tc.build(w, file)
			w.Finish(types()...)
			if head := w.u64(file + inHead); head != 0 && head&1 == 0 { // not a shadow
				w.PutU64(file+inPages, 1)
			}
			c, s := w.open(t)
			n := 0
			for i, err := range c.Dirty(s) {
				if err != nil {
					t.Fatal(err)
				}
				n++
				if got := unsaved(c, s, i, w.Mem); !slices.Equal(got, tc.want) {
					t.Errorf("got %q, want %q", got, tc.want)
				}
				if path, err := c.Paths(s).Of(i); path != "file" || err != nil {
					t.Errorf("path %q, %v", path, err)
				}
			}
			if n != 1 {
				t.Errorf("%d inodes instead of one", n)
			}
		})
	}
}

// folio makes a large folio in aligned memory.
func (w *world) folio(inode addr.Virt, index uint64, order byte, letter byte) addr.Virt {
	for w.Phys(w.Alloc(addr.PageSize))>>addr.Pages4K%4 != 3 {
	}
	first := w.page(inode, index, good|1<<pgHead, letter)
	for range 3 {
		w.Alloc(addr.PageSize)
	}
	w.Put(first+pgOrder, []byte{order})
	return first
}

func TestDirty(t *testing.T) {
	inos := func(c *pagecache.Cache, s *pagecache.Superblock) (found []addr.Ino, errs []error) {
		for i, err := range c.Dirty(s) {
			if err != nil {
				errs = append(errs, err)
				continue
			}
			found = append(found, i.Ino)
		}
		slices.Sort(found)
		return found, errs
	}
	for name, tc := range map[string]struct {
		change func(w *world, a, b, clean addr.Virt)
		want   []addr.Ino
		fails  bool
	}{
		"as it should be": {func(w *world, a, b, clean addr.Virt) {}, []addr.Ino{11, 12}, false},
		"on other lists": {func(w *world, a, b, clean addr.Virt) {
			w.heads(w.wb+24, a+inIO, b+inIO)
			w.add(w.wb+72, a+inIO)
			w.add(w.sb+sbWriteback, b+inWB)
		}, []addr.Ino{11, 12}, false},
		"on two lists": {func(w *world, a, b, clean addr.Virt) {
			w.add(w.sb+sbWriteback, b+inWB)
		}, []addr.Ino{11, 12}, false},
		"a list that leads astray": {func(w *world, a, b, clean addr.Virt) {
			w.PutU64(a+inIO, 0x1234)
			w.PutU64(b+inIO, 0x1234)
		}, []addr.Ino{11, 12}, false},
		"a list that runs in circles": {func(w *world, a, b, clean addr.Virt) {
			w.PutU64(a+inIO, uint64(b+inIO))
			w.PutU64(b+inIO, uint64(a+inIO))
		}, []addr.Ino{11, 12}, false},
		"parked by a sync": {func(w *world, a, b, clean addr.Virt) {
			w.heads(w.wb+24, b+inIO)
			w.add(w.wb+24, a+inIO)
			stack := w.Image("stack", 16)
			w.heads(stack)
			w.add(stack, b+inWB)
			w.PutU64(w.sb+sbSync, uint64(kerneltest.DirectMap)+1)
		}, []addr.Ino{11, 12}, false},
		"all lists broken": {func(w *world, a, b, clean addr.Virt) {
			w.PutU64(w.wb+24, 0x1234)
			w.PutU64(w.sb+sbInodes, 0x1234)
		}, nil, true},
		"beside one that stands for no file": {func(w *world, a, b, clean addr.Virt) {
			w.nameless()
		}, []addr.Ino{11, 12}, false},
		"beside one of a sync that stands for no file": {func(w *world, a, b, clean addr.Virt) {
			w.nameless()
			w.PutU64(w.sb+sbSync, uint64(kerneltest.DirectMap)+1)
		}, []addr.Ino{11, 12}, false},
		"an inode with pages that has no number": {func(w *world, a, b, clean addr.Virt) {
			i := w.nameless()
			w.head(i, w.page(i, 0, 1<<pgUptodate|1<<pgDirty, 'x'))
		}, []addr.Ino{11, 12}, true},
		"an inode with a name that has no number": {func(w *world, a, b, clean addr.Virt) {
			w.dentry("c", w.root, w.nameless())
		}, []addr.Ino{11, 12}, true},
		"an inode with a negative size": {func(w *world, a, b, clean addr.Virt) {
			w.PutU64(a+inSize, 1<<63)
		}, []addr.Ino{12}, true},
		"a clean one of which a write failed": {func(w *world, a, b, clean addr.Virt) {
			w.failed(clean)
		}, []addr.Ino{11, 12, 13}, false},
		"a dirty one of which a write failed": {func(w *world, a, b, clean addr.Virt) {
			w.failed(a)
		}, []addr.Ino{11, 12}, false},
		"a clean one of which a write failed, in the middle of a sync": {func(w *world, a, b, clean addr.Virt) {
			w.failed(clean)
			w.PutU64(w.sb+sbSync, uint64(kerneltest.DirectMap)+1)
		}, []addr.Ino{11, 12, 13}, false},
		"a clean one whose error was counted, but is none": {func(w *world, a, b, clean addr.Virt) {
			w.PutU32(w.sb+sbWrong, 5)
			w.PutU32(clean+inWrong, 0x3000)
		}, []addr.Ino{11, 12}, false},
		"all inodes broken, and a write that failed": {func(w *world, a, b, clean addr.Virt) {
			w.failed(clean)
			w.PutU64(w.sb+sbInodes, 0x1234)
		}, []addr.Ino{11, 12}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.file(11, "a", 1), w.file(12, "b", 1)
			clean := w.file(13, "clean", 1)
			next, prev := w.u64(clean+inIO), w.u64(clean+inIO+8)
			w.PutU64(prev, uint64(next))
			w.PutU64(next+8, uint64(prev))
			w.heads(clean + inIO)
			tc.change(w, a, b, clean)
			w.Finish(types()...)
			c, s := w.open(t)
			got, errs := inos(c, s)
			if !slices.Equal(got, tc.want) || (len(errs) > 0) != tc.fails {
				t.Errorf("inodes %v, %v; want %v", got, errs, tc.want)
			}
		})
	}
}

// TestDirtyOrLocked checks that, besides dirty inodes, those with an operation in flight are found.
func TestDirtyOrLocked(t *testing.T) {
	w := newWorld(t)
	w.file(11, "a", 1)
	busy, read, making := w.file(12, "busy", 1), w.file(13, "read", 1), w.file(14, "making", 1)
	for _, at := range []addr.Virt{busy, read, making} {
		next, prev := w.u64(at+inIO), w.u64(at+inIO+8)
		w.PutU64(prev, uint64(next))
		w.PutU64(next+8, uint64(prev))
		w.heads(at + inIO)
	}
	w.PutU64(busy+inRwsem, 1)      // RWSEM_WRITER_LOCKED
	w.PutU64(read+inRwsem, 1<<8)   // a reader
	w.PutU64(making+inState, 1<<3) // I_NEW
	w.Finish(types()...)
	c, s := w.open(t)
	var found []addr.Ino
	for i, err := range c.DirtyOrLocked(s) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, i.Ino)
		if i.Writing != (i.Ino == 12) {
			t.Errorf("inode %d: being written is %v", i.Ino, i.Writing)
		}
	}
	if slices.Sort(found); !slices.Equal(found, []addr.Ino{11, 12}) {
		t.Errorf("inodes %v", found)
	}
	for i, err := range c.Inodes(s) {
		if err == nil && i.New != (i.Ino == 14) {
			t.Errorf("inode %d: new is %v", i.Ino, i.New)
		}
	}
}

func TestPaths(t *testing.T) {
	w := newWorld(t)
	dir := w.dentry("dir", w.root, 0)
	i := w.file(11, "old", 1)
	w.dentry("new", dir, i)
	loop := w.file(12, "loop", 1)
	d := w.dentry("x", w.root, loop)
	e := w.dentry("y", d, 0)
	w.PutU64(d+deParent, uint64(e))
	deleted := w.file(13, "deleted", 1)
	w.PutU64(w.dentry("gone", w.root, deleted)+deHash+8, 0)
	slash := w.file(14, "slash", 1)
	w.dentry("a/b", w.root, slash)
	w.Finish(types()...)
	c, s := w.open(t)
	paths := c.Paths(s)
	for i := range c.Dirty(s) {
		path, err := paths.Of(i)
		want := map[addr.Ino]string{11: "dir/new"}[i.Ino]
		if path != want || (err == nil) != (want != "") {
			t.Errorf("inode %d: %q, %v", i.Ino, path, err)
		}
	}
}

// busy is a world with a bit of everything.
func busy(t testing.TB) *world {
	w := newWorld(t)
	for n := range 4 {
		i := w.file(uint64(20+n), fmt.Sprint("file", n), 90*addr.PageSize)
		top := w.node(i, 0, 0, 6, nil, 0, 1)
		p := w.page(i, 5, 1<<pgDirty|1<<pgPrivateBit, 'a')
		w.buffers(p, w.data(p), [4]uint64{3, 0, 3, 1})
		leaf := w.node(i, top, 0, 0, map[int]addr.Virt{5: p, 6: w.page(i, 6, good, 'b'), 8: w.folio(i, 8, 2, 'c'), 9: 8<<2 | 2}, 5, 6, 8)
		w.PutU64(top+ndSlots, uint64(2+leaf))
		w.PutU64(top+ndSlots+8, uint64(2+w.node(i, top, 1, 0, map[int]addr.Virt{3: w.page(i, 67, good, 'd')}, 3)))
		w.head(i, 2+top)
	}
	w.Finish(types()...)
	return w
}

// FuzzWalks damages the memory of a busy kernel around its structures. The
// property: every walk ends, without a panic; pieces ascend, do not overlap, lie
// in memory, and belong to a page that says it belongs to that file.
func FuzzWalks(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 1})
	f.Add([]byte{9, 200, 1, 0, 255, 7, 30, 0, 0, 0, 0, 7})
	whole := busy(f)
	f.Fuzz(func(t *testing.T, script []byte) {
		whole.walk(t, script, func(c *pagecache.Cache, s *pagecache.Superblock) {
			_, _ = c.Ext4(s)
			for range c.Inodes(s) {
			}
		})
	})
}

// walk damages a copy of the world around its structures. For each file system it calls look, and
// then walks over all its unsaved data.
func (whole *world) walk(t *testing.T, script []byte, look func(*pagecache.Cache, *pagecache.Superblock)) {
	t.Helper()
	w := &world{Machine: whole.Clone(t)}
	w.Damage(script, whole.nodes...)
	k, err := kernel.Find(w)
	if err != nil {
		return
	}
	c, err := pagecache.Open(k)
	if err != nil {
		return
	}
	for s, err := range c.Superblocks() {
		if err != nil {
			continue
		}
		look(c, s)
		paths := c.Paths(s)
		for i, err := range c.Dirty(s) {
			if err != nil {
				continue
			}
			paths.Of(i)
			checkPieces(t, w, c, s, i)
		}
	}
}

func checkPieces(t *testing.T, w *world, c *pagecache.Cache, s *pagecache.Superblock, i *pagecache.Inode) {
	t.Helper()
	done := int64(0)
	for p, err := range c.Unsaved(s, i) {
		if err != nil {
			var r *pagecache.Refusal
			if !errors.As(err, &r) || r.Reason == 0 {
				t.Errorf("%v is not a refusal", err)
			}
			continue
		}
		if p.Off < done || p.Len() <= 0 {
			t.Errorf("inode %d: %v after %d", i.Ino, p.Span, done)
		}
		done = p.End
		if _, err := w.View(p.Phys, int(p.Len())); err != nil {
			t.Errorf("inode %d: %v: %v", i.Ino, p.Span, err)
		}
	}
}
