package salvage_test

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/fixture"
)

// patched is a disk with some bytes changed.
type patched struct {
	io.ReaderAt
	at map[int64]byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	for at, v := range p.at {
		if at >= off && at < off+int64(n) {
			b[at-off] ^= v
		}
	}
	return n, err
}

// TestCheckLoose compares disks of XFS and btrfs with memory: as the crash left
// them, and with what another mount would change.
func TestCheckLoose(t *testing.T) {
	for _, kernel := range fixture.Kernels {
		if strings.HasPrefix(kernel, "5.10") {
			continue // which has no types of its modules
		}
		for _, name := range []string{"xfs", "btrfs"} {
			t.Run(kernel+" "+name, func(t *testing.T) {
				image := fixture.Get(t, fixture.Everything(kernel))
				c, err := pagecache.Open(openKernel(t, image))
				if err != nil {
					t.Fatal(err)
				}
				disk := image.Format(name)
				s, err := c.Superblock(uuidOf(t, disk))
				if err != nil {
					t.Fatal(err)
				}
				p, err := salvage.ForDisk(c, s, false)
				if err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(disk.Image)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				on, err := salvage.Identify(f)
				if err != nil || on.UUID != s.UUID || on.Family != name {
					t.Errorf("the disk is %+v, %v", on, err)
				}
				if err := errors.Join(p.Check(f), p.Descends(f)); err != nil {
					t.Error(err)
				}
				changes := map[string]map[int64]byte{"uuid": {32: 2}, "superblock": {0: 2}}
				if name == "btrfs" {
					changes = map[string]map[int64]byte{
						"superblock": {64<<10 + 64: 2}, "uuid": {64<<10 + 32: 2}, "generation": {64<<10 + 72: 2}, "root": {64<<10 + 80: 2},
						"chunk root": {64<<10 + 88: 2}, "log root": {64<<10 + 96: 2},
					}
				} else {
					changes["last record of the log"] = another(t, f)
				}
				// An older copy, or one with nothing left of the log or roots in memory.
				all := make(map[int64]byte)
				if name == "btrfs" {
					all[64<<10+80] = 2
					for n := range int64(4) { // its backups
						all[64<<10+2859+n*168] = 2
					}
				} else {
					for _, at := range headers(t, f) {
						all[at+32] = 2
					}
				}
				if err := p.Descends(patched{f, all}); !errors.Is(err, salvage.ErrDiskChanged) {
					t.Errorf("it comes from another: %v", err)
				}
				for field, change := range changes {
					var wrong *salvage.DiskError
					if err := p.Check(patched{f, change}); !errors.As(err, &wrong) || wrong.Field != field {
						t.Errorf("another %s: %v", field, err)
					}
					descends := p.Descends(patched{f, change})
					if is := field != "superblock" && field != "uuid"; (descends == nil) != is {
						t.Errorf("mounted since, and another %s: %v", field, descends)
					}
				}
			})
		}
	}
}

// TestCheckRealtime checks that a disk that has a part of its files on another is refused.
func TestCheckRealtime(t *testing.T) {
	image := fixture.Get(t, fixture.Everything(fixture.Default))
	disk := image.Format("xfs")
	f, err := os.Open(disk.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := planIn(t, openKernel(t, image).Memory(), uuidOf(t, disk))
	if err := p.Check(patched{f, map[int64]byte{23: 1}}); !errors.Is(err, salvage.ErrUnsupported) { // sb_rblocks
		t.Errorf("a realtime section: %v", err)
	}
}

// TestCheckBtrfsInFlight compares a disk with the memory of a kernel that died while it wrote a
// superblock: in a commit, the disk has the one before, with whatever log root there was; in an
// fsync, it may have the log root from before.
func TestCheckBtrfsInFlight(t *testing.T) {
	image := fixture.Get(t, fixture.Everything(fixture.Default))
	disk := image.Format("btrfs")
	id := uuidOf(t, disk)
	f, err := os.Open(disk.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, pagecache.BtrfsSuperSize)
	if _, err := f.ReadAt(b, 64<<10); err != nil {
		t.Fatal(err)
	}
	generation := binary.LittleEndian.Uint64(b[72:])
	before := make(map[int64]byte)
	put := func(off int, v []byte) {
		for i := range v {
			before[64<<10+int64(off+i)] = v[i] ^ b[off+i]
		}
	}
	for at := 2859; at < 2859+4*168; at += 168 { // the backups of roots
		if binary.LittleEndian.Uint64(b[at+8:])+1 == generation {
			put(72, b[at+8:at+16])
			put(80, b[at:at+8])
			put(88, b[at+16:at+24])
		}
	}
	put(96, []byte{0, 0, 0x40})
	log := map[int64]byte{64<<10 + 96: 2}
	for _, tc := range []struct {
		name                string
		committing, logging bool
		disk                map[int64]byte
		field               string // the field that differs; empty if none does
	}{
		{"in a commit, after an fsync", true, false, before, ""},
		{"after a commit, an older copy", false, false, before, "generation"},
		{"in an fsync", false, true, log, ""},
		{"in no fsync", false, false, log, "log root"},
	} {
		p := inFlight(t, openKernel(t, image), id, generation, tc.committing, tc.logging)
		err := p.Check(patched{f, tc.disk})
		var wrong *salvage.DiskError
		if ok := err == nil; ok != (tc.field == "") || !ok && (!errors.As(err, &wrong) || wrong.Field != tc.field) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// inFlight plans for a btrfs in changed memory: the last commit is not known to be written if
// committing is set, and an fsync was being written if logging is set.
func inFlight(t *testing.T, k *kernel.Kernel, id pagecache.UUID, generation uint64, committing, logging bool) *salvage.Plan {
	t.Helper()
	mem := &damaged{Memory: k.Memory(), bytes: make(map[addr.Phys]byte)}
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	types, err := k.Module("btrfs")
	if err != nil {
		t.Fatal(err)
	}
	super, info, root := k.Types().Layout("super_block"), types.Layout("btrfs_fs_info"), types.Layout("btrfs_root")
	private, committed, logRoot := super.Field("s_fs_info", 8), info.Field("last_trans_committed", 8), info.Field("log_root_tree", 8)
	tree, commit := info.Field("tree_root", 8), root.Field("log_commit", 8, 2)
	if err := errors.Join(super.Err(), info.Err(), root.Err()); err != nil {
		t.Fatal(err)
	}
	at, err := k.Pointer(private.In(s.Addr))
	if err != nil {
		t.Fatal(err)
	}
	if committing {
		mem.put(t, k, committed.In(at), generation-1)
	}
	if logging {
		some, err := k.Pointer(tree.In(at)) // any root will do
		if err != nil {
			t.Fatal(err)
		}
		mem.put(t, k, logRoot.In(at), uint64(some))
		mem.put(t, k, commit.In(some), 1<<(4*commit.Size)) // the second of two
	}
	return planIn(t, mem, id)
}

// put replaces the number at an address.
func (d *damaged) put(t *testing.T, k *kernel.Kernel, at addr.Virt, v uint64) {
	t.Helper()
	pa, err := k.Physical(at)
	if err != nil {
		t.Fatal(err)
	}
	for i := range addr.Phys(8) {
		d.bytes[pa+i] = byte(v >> (8 * i))
	}
}

// TestTorn: without a journal, blocks may differ while an inode is being evicted, which no list of inodes tells.
func TestTorn(t *testing.T) {
	image := fixture.Get(t, fixture.Everything(fixture.Default))
	id := uuidOf(t, image.Format("ext2"))
	k := openKernel(t, image)
	if n := planIn(t, k.Memory(), id).Torn(); n != 0 {
		t.Errorf("nothing is in flight: %d", n)
	}
	mem := &damaged{Memory: k.Memory(), bytes: make(map[addr.Phys]byte)}
	mem.evict(t, k, id)
	if n := planIn(t, mem, id).Torn(); n == 0 {
		t.Error("an inode is being evicted, and no block may differ")
	}
}

// evict makes a file system have one operation more in flight, at the level of evictions (SB_FREEZE_FS, include/linux/fs.h).
func (d *damaged) evict(t *testing.T, k *kernel.Kernel, id pagecache.UUID) {
	t.Helper()
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	super, sem := k.Types().Layout("super_block"), k.Types().Layout("percpu_rw_semaphore")
	levels, count := super.Field("s_writers.rw_sem"), sem.Field("read_count", 8)
	counter, err := k.Pointer(count.In(levels.In(s.Addr) + addr.Virt(2*sem.Size)))
	if err := errors.Join(super.Err(), sem.Err(), err); err != nil {
		t.Fatal(err)
	}
	for at, err := range k.PerCPU(counter) {
		if err != nil {
			t.Fatal(err)
		}
		was, err := k.U64(at)
		if err != nil {
			t.Fatal(err)
		}
		d.put(t, k, at, was+1)
		return
	}
	t.Fatal("no CPU is possible")
}

// TestUnborn checks that an inode that the kernel is making, and that has a number already, is no file, and that one that is
// as empty, and hashed, is refused.
func TestUnborn(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	k := openKernel(t, image)
	id := uuidOf(t, image.Format("ext4"))
	inode, info := k.Types().Layout("inode"), k.Types().Layout("ext4_inode_info")
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	ino := planIn(t, k.Memory(), id).Files[0].Ino
	var at addr.Virt
	for i, err := range c.Inodes(superOf(t, c, image, "ext4")) {
		if err == nil && i.Ino == ino {
			at = i.Addr
		}
	}
	for _, hashed := range []bool{false, true} {
		mem := &damaged{Memory: k.Memory(), bytes: make(map[addr.Phys]byte)}
		for _, name := range []string{"i_dentry", "i_data.i_pages.xa_head", "i_data.nrpages", "i_size", "i_hash.pprev"} {
			if name != "i_hash.pprev" || !hashed {
				mem.put(t, k, inode.Field(name, 8).In(at), 0)
			}
		}
		mem.put(t, k, at+addr.Virt(info.Field("i_disksize", 8).Off-info.Field("vfs_inode").Off), 60)
		if err := errors.Join(inode.Err(), info.Err()); err != nil {
			t.Fatal(err)
		}
		refused := slices.ContainsFunc(planIn(t, mem, id).Refused, func(r *pagecache.Refusal) bool { return r.Inode == ino && r.Reason == pagecache.BadInode })
		if refused != hashed {
			t.Errorf("hashed: %v; refused: %v", hashed, refused)
		}
	}
}

// TestOrdered checks that data that waits to be recorded, of a file without extents, is not taken for zeros.
func TestOrdered(t *testing.T) {
	image := fixture.Get(t, fixture.Everything(fixture.Default))
	id := uuidOf(t, image.Format("btrfs"))
	k := openKernel(t, image)
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	types, err := k.Module("btrfs")
	if err != nil {
		t.Fatal(err)
	}
	layout := types.Layout("btrfs_inode")
	inode, ordered := layout.Field("vfs_inode"), layout.First([]string{"ordered_tree.tree.rb_node", "ordered_tree.rb_node"}, 8)
	if err := layout.Err(); err != nil {
		t.Fatal(err)
	}
	zeros := make(map[addr.Ino]bool)
	for _, f := range planIn(t, k.Memory(), id).Files {
		zeros[f.Ino] = len(f.Metadata.Zeros) > 0
	}
	for i, err := range c.Inodes(s) {
		if err != nil {
			t.Fatal(err)
		}
		if !zeros[i.Ino] {
			continue
		}
		mem := &damaged{Memory: k.Memory(), bytes: make(map[addr.Phys]byte)}
		mem.put(t, k, ordered.In(i.Addr-addr.Virt(inode.Off)), uint64(i.Addr))
		p := planIn(t, mem, id)
		if !slices.ContainsFunc(p.Refused, func(r *pagecache.Refusal) bool { return r.Inode == i.Ino && r.Reason == pagecache.Partial }) {
			t.Errorf("inode %d: what waits to be recorded is taken for zeros", i.Ino)
		}
		return
	}
	t.Error("there is no file with zeros")
}

// TestKept checks what is written of a file whose content the disk has: if only its metadata changed since the last
// commit, nothing before the last block that has content on the disk; if its extents may have changed, everything
// that is cached, unless the file is refused.
func TestKept(t *testing.T) {
	image := fixture.Get(t, fixture.Everything(fixture.Default))
	for _, tc := range []struct {
		format, path string
		from         int64 // where the written bytes begin; 0 if nothing is written
	}{
		{"xfs", "old/mid", 0}, {"xfs", "old/append", 8192}, // the rest of it had no blocks yet
		{"btrfs", "old/mid", 0}, {"btrfs", "old/append", 45056},
	} {
		for _, moved := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, %s, moved %v", tc.format, tc.path, moved), func(t *testing.T) {
				id := uuidOf(t, image.Format(tc.format))
				k := openKernel(t, image)
				mem := &damaged{Memory: k.Memory(), bytes: make(map[addr.Phys]byte)}
				f := planned(planIn(t, mem, id), tc.path)
				if f == nil || len(f.Runs) == 0 {
					t.Fatal("it is not in the plan, or has nothing unsaved")
				}
				changed(t, k, mem, id, f, moved)
				want := spansOf(f)
				p := planIn(t, mem, id)
				f = planned(p, tc.path)
				if moved && f == nil && len(p.Refused) > 0 { // btrfs does not tell where the rest of it is
					return
				}
				if f == nil {
					t.Fatalf("it is not in the plan: %v", p.Refused)
				}
				if !moved && tc.from > 0 {
					want = []addr.Span{{Off: tc.from, End: f.Size}}
				} else if !moved {
					want = nil
				}
				if got := spansOf(f); f.Metadata.Committed || f.Metadata.Kept == moved || !slices.Equal(got, want) {
					t.Errorf("of %d bytes these are written: %v, want %v; kept is %v", f.Size, got, want, f.Metadata.Kept)
				}
			})
		}
	}
}

// planned returns the file of a plan that has a path; nil if there is none.
func planned(p *salvage.Plan, path string) *salvage.File {
	if at := slices.IndexFunc(p.Files, func(f salvage.File) bool { return f.Path == path }); at >= 0 {
		return &p.Files[at]
	}
	return nil
}

func spansOf(f *salvage.File) (out []addr.Span) {
	for _, r := range f.Runs {
		out = append(out, r.Span)
	}
	return out
}

// changed alters memory so that the unsaved pages of a file are saved, and something else of the file
// has changed since the last commit; if moved is set, its extents have.
func changed(t *testing.T, k *kernel.Kernel, mem *damaged, id pagecache.UUID, f *salvage.File, moved bool) {
	t.Helper()
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	types, err := k.Module(s.Type)
	if err != nil {
		t.Fatal(err)
	}
	l, item := types.Layout(s.Type+"_inode"), types.Layout("xfs_inode_log_item")
	for i, err := range c.Inodes(s) {
		if err != nil {
			t.Fatal(err)
		}
		if i.Ino != f.Ino {
			continue
		}
		for _, r := range f.Runs {
			for page, n := range r.Physical() {
				for end := page + addr.Phys(n); page < end; page += addr.PageSize {
					saved(t, k, mem, i, page)
				}
			}
		}
		if s.Type == "btrfs" {
			inode, last, logged := l.Field("vfs_inode"), l.Field("last_trans", 8), l.Field("logged_trans", 8)
			own := i.Addr - addr.Virt(inode.Off)
			mem.put(t, k, last.In(own), 1<<40)
			if moved {
				mem.put(t, k, logged.In(own), 1<<40)
			}
			err = l.Err()
		} else {
			inode, at, fields := l.Field("i_vnode"), l.Field("i_itemp", 8), item.Field("ili_fields", 4)
			var log addr.Virt
			var v uint64
			log, err = k.Pointer(at.In(i.Addr - addr.Virt(inode.Off)))
			if err == nil {
				v, err = k.U64(fields.In(log))
			}
			if err == nil && moved {
				mem.put(t, k, fields.In(log), v|0x4) // XFS_ILOG_DEXT
			}
			err = errors.Join(err, l.Err(), item.Err())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// saved clears the dirty flag of a page of a file's cache, and all marks of the tree and of its top node
// (include/linux/xarray.h, XA_FLAGS_MARK: above the bits of GFP flags; struct xa_node).
func saved(t *testing.T, k *kernel.Kernel, mem *damaged, i *pagecache.Inode, page addr.Phys) {
	t.Helper()
	mapping, descriptor, node := k.Types().Layout("address_space"), k.Types().Layout("page"), k.Types().Layout("xa_node")
	marks, head, flags := mapping.Field("i_pages.xa_flags", 4), mapping.Field("i_pages.xa_head", 8), descriptor.Field("flags", 8)
	tags := node.First([]string{"marks", "tags"})
	dirty, err := k.Types().Enum("pageflags", "PG_dirty")
	if err := errors.Join(mapping.Err(), descriptor.Err(), node.Err(), err); err != nil {
		t.Fatal(err)
	}
	top, err := k.Pointer(head.In(i.Mapping()))
	if err != nil {
		t.Fatal(err)
	}
	clears := map[addr.Virt]uint64{
		marks.In(i.Mapping()): 0xff << 24,
		flags.In(k.PageStruct(addr.PFN(page / addr.PageSize))): 1 << dirty,
	}
	if top&3 == 2 {
		for n := range addr.Virt(3) {
			clears[tags.In(top-2)+8*n] = 1<<64 - 1
		}
	}
	for at, clear := range clears {
		v, err := k.U64(at)
		if err != nil {
			t.Fatal(err)
		}
		mem.put(t, k, at, v&^clear)
	}
}

// planIn plans for the disk of a file system in mem.
func planIn(t *testing.T, mem ram.Memory, id pagecache.UUID) *salvage.Plan {
	t.Helper()
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	p, err := salvage.ForDisk(c, s, false)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// another returns what a later mount changes behind the last record of an XFS log: the
// header of one more record, with another checksum (struct xlog_rec_header,
// fs/xfs/libxfs/xfs_log_format.h).
func another(t *testing.T, disk io.ReaderAt) map[int64]byte {
	t.Helper()
	last := headers(t, disk)[0]
	header, there := make([]byte, 512), make([]byte, 512)
	if _, err := disk.ReadAt(header, last); err != nil {
		t.Fatal(err)
	}
	blocks := 1 + binary.BigEndian.Uint32(header[12:])/512 // of the last record, including its header
	lsn := binary.BigEndian.Uint64(header[16:])
	binary.BigEndian.PutUint64(header[16:], lsn+uint64(blocks))
	header[32] ^= 2
	at := last + int64(blocks)*512
	if _, err := disk.ReadAt(there, at); err != nil {
		t.Fatal(err)
	}
	change := make(map[int64]byte)
	for i := range header {
		change[at+int64(i)] = header[i] ^ there[i]
	}
	return change
}

// headers finds the headers of the records of an XFS log in a simple way, the last
// of them first.
func headers(t *testing.T, disk io.ReaderAt) []int64 {
	t.Helper()
	var found []int64
	lsn := make(map[int64]uint64)
	b := make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(b)) {
		n, err := disk.ReadAt(b, off)
		for at := 0; at+512 <= n; at += 512 {
			if binary.BigEndian.Uint32(b[at:]) == 0xfeedbabe {
				found = append(found, off+int64(at))
				lsn[off+int64(at)] = binary.BigEndian.Uint64(b[at+16:])
			}
		}
		if err != nil {
			break
		}
	}
	if len(found) == 0 {
		t.Fatal("there is no log")
	}
	slices.SortFunc(found, func(a, b int64) int { return cmp.Compare(lsn[b], lsn[a]) })
	return found
}
