package pagecache_test

import (
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// The offsets of the made-up kernel's structures, in bytes. Sizes are in types.
const (
	sbList, sbDev, sbBlock, sbType, sbFlags, sbMagic = 0, 16, 24, 32, 40, 48
	sbRoot, sbBdi, sbInfo, sbID, sbUUID              = 56, 64, 72, 80, 112
	sbInodes, sbWriteback, sbSync, sbWrong, sbSize   = 128, 144, 160, 168, 192
	sbOptions                                        = 16 // in sbInfo

	inState, inMode, inUID, inGID, inFlags, inSuper = 0, 8, 12, 16, 20, 24
	inIno, inNlink, inSize, inAtime, inMtime        = 32, 40, 48, 56, 72
	inCtime, inIO, inWB, inSB, inDentry, inGen      = 88, 104, 120, 136, 152, 160
	inBlkbits                                       = 164
	inRwsem                                         = inPages + 8
	inMapping, inData, inBytes                      = 168, 176, 256
	inTree                                          = inData + 8  // an xarray
	inTreeFlags                                     = inTree + 4  //
	inHead                                          = inTree + 8  //
	inPages                                         = inData + 40 //
	inWrong                                         = inData + 56 //

	pgFlags, pgMapping, pgIndex, pgPrivate = 0, 24, 32, 40
	pgOrder                                = kerneltest.PageStruct + 17

	ndShift, ndOffset, ndParent, ndArray, ndSlots, ndMarks, ndSize = 0, 1, 8, 16, 40, 552, 576

	deHash, deParent, deName, deInode, deSB, deAlias, deData, deSize = 8, 24, 32, 48, 56, 64, 80, 96

	bhState, bhNext, bhPage, bhBlock, bhLen, bhData, bhCount, bhSize = 0, 8, 16, 24, 32, 40, 96, 104
)

// Bits of flags of the made-up kernel.
const (
	pgLocked, pgUptodate, pgDirty, pgWriteback, pgPrivateBit, pgHead, pgPoison = 0, 2, 3, 15, 13, 16, 22
	bhUptodate, bhDirty, bhLock, bhMapped, bhNew, bhAsync                      = 0, 1, 2, 5, 6, 7
)

func field(name string, off uint32, t btf.Type) btf.Member {
	return btf.Member{Name: name, Type: t, Offset: btf.Bits(off * 8)}
}

func types() []btf.Type {
	u8, u16 := &btf.Int{Name: "u8", Size: 1}, &btf.Int{Name: "u16", Size: 2}
	u32, u64 := &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	blob := func(n uint32) btf.Type { return &btf.Array{Index: u32, Type: u8, Nelems: n} }
	list := blob(16)
	st := func(name string, size uint32, m ...btf.Member) *btf.Struct {
		return &btf.Struct{Name: name, Size: size, Members: m}
	}
	kid := st("kid", 4, field("val", 0, u32))
	ts := st("timespec64", 16, field("tv_sec", 0, u64), field("tv_nsec", 8, u64))
	xa := st("xarray", 16, field("xa_flags", 4, u32), field("xa_head", 8, u64))
	mapping := st("address_space", 80, field("i_pages", 8, xa), field("nrpages", 40, u64), field("wb_err", 56, u32))
	enum := func(name string, values map[string]uint64) btf.Type {
		e := &btf.Enum{Name: name, Size: 4}
		for n, v := range values {
			e.Values = append(e.Values, btf.EnumValue{Name: n, Value: v})
		}
		return e
	}
	wb := st("bdi_writeback", 128, field("bdi", 0, u64), field("bdi_node", 8, list), field("b_dirty", 24, list),
		field("b_io", 40, list), field("b_more_io", 56, list), field("b_dirty_time", 72, list), field("list_lock", 88, st("spinlock", 4, field("rlock", 0, st("raw_spinlock", 4, field("raw_lock", 0, st("qspinlock", 4, field("val", 0, u32))))))))
	return []btf.Type{
		st("super_block", sbSize, field("s_list", sbList, list), field("s_dev", sbDev, u32), field("s_blocksize", sbBlock, u64),
			field("s_type", sbType, u64), field("s_flags", sbFlags, u64), field("s_magic", sbMagic, u64),
			field("s_root", sbRoot, u64), field("s_bdi", sbBdi, u64), field("s_fs_info", sbInfo, u64),
			field("s_id", sbID, blob(32)), field("s_uuid", sbUUID, blob(16)), field("s_inodes", sbInodes, list),
			field("s_inodes_wb", sbWriteback, list), field("s_sync_lock", sbSync, st("mutex", 8, field("owner", 0, u64))), field("s_wb_err", sbWrong, u32)),
		st("file_system_type", 64, field("name", 8, u64)),
		st("backing_dev_info", 256, field("wb_list", 0, list), field("wb", 64, wb)), wb,
		st("inode", inBytes, field("i_state", inState, u64), field("i_mode", inMode, u16), field("i_uid", inUID, kid),
			field("i_gid", inGID, kid), field("i_flags", inFlags, u32), field("i_sb", inSuper, u64), field("i_ino", inIno, u64),
			field("i_nlink", inNlink, u32), field("i_size", inSize, u64), field("i_atime", inAtime, ts),
			field("i_mtime", inMtime, ts), field("__i_ctime", inCtime, ts), field("i_io_list", inIO, list),
			field("i_wb_list", inWB, list), field("i_sb_list", inSB, list), field("i_dentry", inDentry, u64),
			field("i_generation", inGen, u32), field("i_blkbits", inBlkbits, u8),
			field("i_rwsem", inRwsem, st("rw_semaphore", 8, field("count", 0, st("atomic64_t", 8, field("counter", 0, u64))))), field("i_mapping", inMapping, u64), field("i_data", inData, mapping)),
		st("xa_node", ndSize, field("shift", ndShift, u8), field("offset", ndOffset, u8), field("parent", ndParent, u64),
			field("array", ndArray, u64), field("slots", ndSlots, blob(512)), field("marks", ndMarks, blob(24))),
		st("page", kerneltest.PageStruct, field("flags", pgFlags, u64), field("mapping", pgMapping, u64),
			field("index", pgIndex, u64), field("private", pgPrivate, u64)),
		st("folio", 2*kerneltest.PageStruct, field("_folio_order", pgOrder, u8)),
		st("buffer_head", bhSize, field("b_state", bhState, u64), field("b_this_page", bhNext, u64), field("b_page", bhPage, u64),
			field("b_blocknr", bhBlock, u64), field("b_size", bhLen, u64), field("b_data", bhData, u64),
			field("b_count", bhCount, st("atomic_t", 4, field("counter", 0, u32)))),
		st("dentry", deSize, field("d_hash", deHash, st("hash", 16, field("pprev", 8, u64))), field("d_parent", deParent, u64),
			field("d_name", deName, st("qstr", 16, field("len", 4, u32), field("name", 8, u64))),
			field("d_inode", deInode, u64), field("d_sb", deSB, u64), field("d_alias", deAlias, list), field("d_fsdata", deData, u64)),
		enum("pageflags", map[string]uint64{"PG_uptodate": pgUptodate, "PG_dirty": pgDirty, "PG_writeback": pgWriteback,
			"PG_head": pgHead, "PG_locked": pgLocked, "PG_private": pgPrivateBit, "PG_hwpoison": pgPoison}),
		enum("bh_state_bits", map[string]uint64{"BH_Uptodate": bhUptodate, "BH_Dirty": bhDirty, "BH_Async_Write": bhAsync,
			"BH_Lock": bhLock, "BH_Mapped": bhMapped, "BH_New": bhNew, "BH_Delay": 9, "BH_Unwritten": 12, "BH_Write_EIO": 11, "BH_PrivateStart": 16}),
		st("ext4_sb_info", 24, field("s_es", 0, u64), field("s_journal", 8, u64), field("s_mount_opt", sbOptions, u32)),
		st("iomap_folio_state", 16, field("state_lock", 0, u32), field("state", 16, blob(0))),
		st("journal_s", 72, field("j_superblock", 40, u64), field("j_private", 48, u64), field("j_tail_sequence", 0, u32), field("j_tail", 8, u64), field("j_head", 16, u64),
			field("j_commit_sequence", 24, u32), field("j_transaction_sequence", 28, u32), field("j_flags", 56, u64), field("j_errno", 64, u32)),
	}
}

// world is a machine with one mounted file system.
type world struct {
	*kerneltest.Machine
	sb, bdi, wb, root addr.Virt
	typeName          addr.Virt
	nodes             []addr.Virt // everything of interest, for damage
}

// newWorld mounts an ext4 whose UUID is all 7.
func newWorld(t testing.TB) *world { return newWorldOn(kerneltest.New(t)) }

func newWorldOn(m *kerneltest.Machine) *world {
	w := &world{Machine: m}
	supers := w.Image("super_blocks", 16)
	w.sb, w.bdi = w.alloc(sbSize), w.alloc(256)
	w.wb = w.bdi + 64
	w.heads(supers, w.sb+sbInodes, w.sb+sbWriteback, w.bdi, w.wb+24, w.wb+40, w.wb+56, w.wb+72)
	w.add(supers, w.sb+sbList)
	w.add(w.bdi, w.wb+8)
	w.PutU64(w.wb, uint64(w.bdi))
	w.PutU64(w.sb+sbBdi, uint64(w.bdi))
	fs := w.alloc(64)
	w.typeName = w.alloc(8)
	w.kind("ext4")
	w.PutU64(fs+8, uint64(w.typeName))
	w.PutU64(w.sb+sbType, uint64(fs))
	w.Put(w.sb+sbID, []byte("vda"))
	info, disk := w.alloc(24), w.alloc(1024)
	w.PutU64(w.sb+sbInfo, uint64(info))
	w.PutU64(info, uint64(disk))
	w.PutU32(disk+0x38, 0xef53)
	for i := range addr.Virt(16) {
		w.Put(w.sb+sbUUID+i, []byte{7})
		w.Put(disk+0x68+i, []byte{7})
	}
	w.root = w.dentry("/", 0, 0)
	w.PutU64(w.sb+sbRoot, uint64(w.root))
	return w
}

// kind changes the type of the file system, a name of four bytes at most.
func (w *world) kind(name string) { w.Put(w.typeName, append([]byte(name), 0)) }

// blocks gives a page the state of its blocks of 2^bits bytes: those set in bitmap
// are uptodate.
func (w *world) blocks(inode, page addr.Virt, bits byte, bitmap uint64) {
	state := w.alloc(24)
	w.Put(inode+inBlkbits, []byte{bits})
	w.PutU64(state+16, bitmap)
	w.PutU64(page+pgPrivate, uint64(state))
}

func (w *world) alloc(n int) addr.Virt {
	at := w.Alloc(n)
	w.nodes = append(w.nodes, at)
	return at
}

// heads makes empty lists.
func (w *world) heads(at ...addr.Virt) {
	for _, h := range at {
		w.PutU64(h, uint64(h))
		w.PutU64(h+8, uint64(h))
	}
}

func (w *world) u64(at addr.Virt) addr.Virt {
	b := w.Mem[w.Phys(at):]
	return kernel.Field{Size: 8}.Pointer(b[:8])
}

// add puts an entry first on a list.
func (w *world) add(head, entry addr.Virt) {
	next := w.u64(head)
	w.PutU64(entry, uint64(next))
	w.PutU64(entry+8, uint64(head))
	w.PutU64(head, uint64(entry))
	w.PutU64(next+8, uint64(entry))
}

func (w *world) dentry(name string, parent, inode addr.Virt) addr.Virt {
	d, s := w.alloc(deSize), w.alloc(len(name)+1)
	if parent == 0 {
		parent = d
	}
	w.Put(s, []byte(name))
	w.PutU64(d+deHash+8, 1)
	w.PutU64(d+deParent, uint64(parent))
	w.PutU32(d+deName+4, uint32(len(name)))
	w.PutU64(d+deName+8, uint64(s))
	w.PutU64(d+deInode, uint64(inode))
	w.PutU64(d+deSB, uint64(w.sb))
	if inode != 0 {
		w.PutU64(inode+inDentry, uint64(d+deAlias))
		w.PutU64(d+deAlias+8, uint64(inode+inDentry))
	}
	return d
}

// file makes a regular file that is dirty, with a name in the top directory.
func (w *world) file(ino uint64, name string, size int64) addr.Virt {
	i := w.alloc(inBytes)
	w.PutU32(i+inMode, 0o100644)
	w.PutU64(i+inSuper, uint64(w.sb))
	w.PutU64(i+inIno, ino)
	w.PutU32(i+inNlink, 1)
	w.PutU64(i+inSize, uint64(size))
	w.PutU64(i+inMapping, uint64(i+inData))
	w.heads(i+inIO, i+inWB)
	w.add(w.wb+24, i+inIO)
	w.add(w.sb+sbInodes, i+inSB)
	w.dentry(name, w.root, i)
	return i
}

// nameless makes an inode on all lists that has neither name nor number.
func (w *world) nameless() addr.Virt {
	i := w.file(0, "", 0)
	w.PutU64(i+inDentry, 0)
	return i
}

// page makes a page of a file, filled with a letter.
func (w *world) page(inode addr.Virt, index uint64, flags uint64, letter byte) addr.Virt {
	data := w.Alloc(w.PageSize())
	for i := range w.PageSize() {
		w.Mem[w.Phys(data)+addr.Phys(i)] = letter
	}
	p := w.Page(data)
	w.nodes = append(w.nodes, p)
	w.PutU64(p+pgFlags, flags)
	w.PutU64(p+pgMapping, uint64(inode+inData))
	w.PutU64(p+pgIndex, index)
	return p
}

// node makes a node of a file's tree with marked entries.
func (w *world) node(inode, parent addr.Virt, offset, shift byte, slots map[int]addr.Virt, marked ...int) addr.Virt {
	n := w.alloc(ndSize)
	w.Put(n, []byte{shift, offset})
	w.PutU64(n+ndParent, uint64(parent))
	w.PutU64(n+ndArray, uint64(inode+inTree))
	var marks uint64
	for _, slot := range marked {
		marks |= 1 << slot
	}
	w.PutU64(n+ndMarks, marks)
	for slot, e := range slots {
		w.PutU64(n+ndSlots+addr.Virt(8*slot), uint64(e))
	}
	return n
}

// head sets the top of a file's tree.
func (w *world) head(inode, entry addr.Virt) {
	w.PutU64(inode+inHead, uint64(entry))
	w.PutU32(inode+inTreeFlags, 1<<27|0x21)
}

// buffers gives a page four buffers of 1 KiB with these states.
func (w *world) buffers(page, data addr.Virt, states [4]uint64) {
	w.buffersOf(page, data, 1024, states[:])
}

// buffersOf gives a page buffers of a size.
func (w *world) buffersOf(page, data addr.Virt, size uint64, states []uint64) {
	b := make([]addr.Virt, len(states))
	for i := range b {
		b[i] = w.alloc(bhSize)
	}
	for i, at := range b {
		w.PutU64(at+bhState, states[i])
		w.PutU64(at+bhNext, uint64(b[(i+1)%len(b)]))
		w.PutU64(at+bhPage, uint64(page))
		w.PutU64(at+bhLen, size)
		w.PutU64(at+bhData, uint64(data)+uint64(i)*size)
	}
	w.PutU64(page+pgPrivate, uint64(b[0]))
}

// data returns the address of the bytes of a page.
func (w *world) data(page addr.Virt) addr.Virt { return w.Data(page) }

// open finds the kernel and its file system.
func (w *world) open(t testing.TB) (*pagecache.Cache, *pagecache.Superblock) {
	t.Helper()
	k, err := kernel.Find(w)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(pagecache.UUID{7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7})
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}
