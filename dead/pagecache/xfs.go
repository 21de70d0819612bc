package pagecache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// XFS is what the kernel's xfs has in memory about one mounted file system.
type XFS struct {
	c      *Cache
	s      *Superblock
	layout *xfsLayout
	log    addr.Virt // of its struct xlog

	blockLog          uint // log2 of the size of a block, in bytes
	agBlocks, agShift uint64
	internal          []uint64 // the file system's own inodes

	buffers    map[int64]addr.Virt // by place on the device; nil until one is asked for
	buffersErr error
}

// xfsLayout is what is read of the structures of xfs (fs/xfs/xfs_mount.h,
// xfs_log_priv.h, xfs_inode.h, xfs_inode_item.h, libxfs/xfs_inode_fork.h).
type xfsLayout struct {
	mountSize                                          int
	log, super, agBlocks, agLog, blockLog              kernel.Field
	internal                                           []kernel.Field
	groups                                             kernel.Field // of allocation groups, by number
	groupInodes, groupMount                            kernel.Field // in xfs_perag
	groupErr                                           error
	logSize                                            int
	iclogs, iclogCount, mount, cycle, block, lastBlock kernel.Field
	iclogSize                                          int
	next, header, state                                kernel.Field
	pending                                            []uint64 // states of log buffers that may not be on the disk
	inodeSize                                          int
	inode, inodeMount, item, pins                      kernel.Field
	lock                                               kernel.Lock
	fork                                               xfsForkLayout
	data, attrs, attrsAt                               kernel.Field // forks in xfs_inode: i_df, i_af, and before 6.0 (commit 2ed5b09b3e8f) a pointer, i_afp
	buffers                                            xfsBufferLayout
	settings                                           xfsSettings
	itemSize                                           int
	itemInode, itemDirty, itemFields                   kernel.Field
	itemFsync, itemDatasync                            kernel.Field // 6.1 and 6.12 have the first, 7.2 the second
}

func newXFSLayout(k *kernel.Kernel) (*xfsLayout, error) {
	x := &xfsLayout{}
	m := layoutIn(k, "xfs_mount", "xfs")
	x.mountSize = m.Size
	x.log, x.super = m.Field("m_log", 8), m.Field("m_super", 8)
	x.agBlocks, x.agLog, x.blockLog = m.Field("m_sb.sb_agblocks", 4), m.Field("m_sb.sb_agblklog", 1), m.Field("m_sb.sb_blocklog", 1)
	for _, name := range []string{"sb_rbmino", "sb_rsumino", "sb_uquotino", "sb_gquotino", "sb_pquotino"} {
		if f := m.Optional("m_sb."+name, 8); f.Present() {
			x.internal = append(x.internal, f)
		}
	}
	// A radix tree, an xarray since 6.12, and the first of several in an array since 6.13 (seen on 6.1, 6.12 and 7.2).
	x.groups = m.First([]string{"m_perag_tree", "m_perags", "m_groups"})
	g := layoutIn(k, "xfs_perag", "xfs")
	x.groupInodes, x.groupMount = g.Field("pag_ici_root"), g.First([]string{"pag_mount", "pag_group.xg_mount"}, 8)
	x.groupErr = g.Err()
	l := layoutIn(k, "xlog", "xfs")
	x.logSize = l.Size
	x.mount, x.iclogs, x.iclogCount = l.Field("l_mp", 8), l.Field("l_iclog", 8), l.Field("l_iclog_bufs", 4)
	x.cycle, x.block, x.lastBlock = l.Field("l_curr_cycle", 4), l.Field("l_curr_block", 4), l.Field("l_prev_block", 4)
	c := layoutIn(k, "xlog_in_core", "xfs")
	x.iclogSize = c.Size
	// The header is the first part of the data; on 7.2 it has its own pointer.
	x.next, x.header = c.Field("ic_next", 8), c.First([]string{"ic_header", "ic_data"}, 8)
	x.state = c.Field("ic_state", 4)
	var err error
	if x.pending, err = iclogStates(k); err != nil {
		return nil, err
	}
	i := layoutIn(k, "xfs_inode", "xfs")
	x.inodeSize = i.Size
	x.inode, x.inodeMount, x.item = i.Field("i_vnode"), i.Field("i_mount", 8), i.Field("i_itemp", 8)
	x.pins = i.Field("i_pincount.counter", 4)
	// On 6.1 the semaphore is inside a structure, on 6.12 it is not.
	x.lock = i.Lock("i_lock.mr_lock", "i_lock")
	f := layoutIn(k, "xfs_ifork", "xfs")
	x.fork = newXFSForkLayout(f)
	x.data, x.attrs, x.attrsAt = i.Field("i_df", f.Size), i.Optional("i_af", f.Size), i.Optional("i_afp", 8)
	x.buffers, x.settings = newXFSBufferLayout(k), newXFSSettings(i)
	t := layoutIn(k, "xfs_inode_log_item", "xfs")
	x.itemSize = t.Size
	x.itemInode, x.itemDirty, x.itemFields = t.Field("ili_inode", 8), t.Field("ili_dirty_flags", 4), t.Field("ili_fields", 4)
	x.itemFsync, x.itemDatasync = t.Optional("ili_fsync_fields", 4), t.Optional("ili_datasync_seq", 8)
	return x, errors.Join(m.Err(), l.Err(), c.Err(), i.Err(), f.Err(), t.Err())
}

// xfsForkLayout is what is read of a fork of an inode (libxfs/xfs_inode_fork.h, struct xfs_ifork).
type xfsForkLayout struct {
	size                                 int
	bytes, height, root, extents, format kernel.Field
}

func newXFSForkLayout(f *kernel.Layout) xfsForkLayout {
	return xfsForkLayout{
		size: f.Size, bytes: f.Field("if_bytes", 4, 8), height: f.Field("if_height", 4), extents: f.Field("if_nextents", 4, 8), format: f.Field("if_format", 1),
		// On 6.1 in a named union, on 6.12 in an anonymous one.
		root: f.First([]string{"if_u1.if_root", "if_data"}, 8),
	}
}

// xfsFork is a fork of an inode.
type xfsFork struct {
	format, bytes, height, extents uint64
	at                             addr.Virt // of its content, or of the tree of its extents
}

func (l *xfsForkLayout) read(b []byte) xfsFork {
	return xfsFork{l.format.Uint(b), l.bytes.Uint(b), l.height.Uint(b), l.extents.Uint(b), l.root.Pointer(b)}
}

// iclogStates returns the states of a log buffer that was closed and is not known to
// have been written (fs/xfs/xfs_log_priv.h, enum xlog_iclog_state).
func iclogStates(k *kernel.Kernel) ([]uint64, error) {
	t := k.Types()
	if module, err := k.Module("xfs"); err == nil {
		t = module
	}
	var out []uint64
	for _, name := range []string{"XLOG_STATE_WANT_SYNC", "XLOG_STATE_SYNCING"} {
		v, err := t.Enum("xlog_iclog_state", name)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// XFS reads what the kernel's xfs has about a file system.
func (c *Cache) XFS(s *Superblock) (*XFS, error) {
	l, err := newXFSLayout(c.k)
	if err != nil {
		return nil, fmt.Errorf("read xfs: %w", err)
	}
	x := &XFS{c: c, s: s, layout: l}
	b, err := c.k.Bytes(s.info, l.mountSize)
	if err != nil {
		return nil, fmt.Errorf("read xfs: mount of %s: %w", s.ID, err)
	}
	if owner := l.super.Pointer(b); owner != s.Addr {
		return nil, fmt.Errorf("read xfs: mount of %s belongs to superblock at %v", s.ID, owner)
	}
	x.log = l.log.Pointer(b)
	x.blockLog, x.agBlocks = uint(l.blockLog.Uint(b)), l.agBlocks.Uint(b)
	x.agShift = l.agLog.Uint(b)
	// XFS_MIN_BLOCKSIZE to XFS_MAX_BLOCKSIZE, and an allocation group has at most
	// 2^31 blocks (fs/xfs/libxfs/xfs_format.h).
	if x.blockLog < 9 || x.blockLog > 16 || x.agShift > 31 || x.agBlocks == 0 || x.agBlocks > 1<<x.agShift {
		return nil, fmt.Errorf("read xfs: %s has blocks of 1 << %d bytes, groups of %d of them, 1 << %d", s.ID, x.blockLog, x.agBlocks, x.agShift)
	}
	for _, f := range l.internal {
		x.internal = append(x.internal, f.Uint(b))
	}
	return x, nil
}

// Internal reports whether an inode is the file system's own: of quotas, or of the
// real-time device.
func (x *XFS) Internal(i *Inode) bool { return slices.Contains(x.internal, uint64(i.Ino)) }

// LogRecord identifies a record of an XFS log by fields of its header, which is on the
// disk, and stays in memory until its buffer is reused (struct xlog_rec_header,
// fs/xfs/libxfs/xfs_log_format.h).
type LogRecord struct {
	Len      uint32 // bytes
	CRC      uint32 // of all of it
	Previous uint32 // block of the log in which the previous record begins
}

// logHeaderSize is how many bytes of a header ParseLogRecord reads.
const logHeaderSize = 44

// ParseLogRecord reads the header of a record, from disk or from memory.
func ParseLogRecord(b []byte) (LogRecord, error) {
	if len(b) < logHeaderSize || binary.BigEndian.Uint32(b) != 0xfeedbabe {
		return LogRecord{}, errors.New("parse log record: it does not begin with XLOG_HEADER_MAGIC_NUM")
	}
	return LogRecord{
		Len: binary.BigEndian.Uint32(b[12:]), CRC: binary.LittleEndian.Uint32(b[32:]), Previous: binary.BigEndian.Uint32(b[36:]),
	}, nil
}

// maxIclogs is XLOG_MAX_ICLOGS (fs/xfs/libxfs/xfs_log_format.h).
const maxIclogs = 8

// WrittenRecord is a record that the kernel wrote to the log, or was about to.
type WrittenRecord struct {
	LogRecord
	Done bool // the disk has it for sure
}

// Records returns the last records that the kernel wrote to the log, or was about
// to, in no particular order, and the LSN of the last of them. If it has written none since the mount, last
// is the LSN of the last record that the mount found (fs/xfs/xfs_log_recover.c, xlog_set_state).
func (x *XFS) Records() (out []WrittenRecord, last uint64, err error) {
	if out, last, err = x.records(); err != nil {
		return nil, 0, fmt.Errorf("read log of %s: %w", x.s.ID, err)
	}
	return out, last, nil
}

func (x *XFS) records() (out []WrittenRecord, last uint64, err error) {
	l := x.layout
	b, err := x.c.k.Bytes(x.log, l.logSize)
	if err != nil {
		return nil, 0, err
	}
	if mount := l.mount.Pointer(b); mount != x.s.info {
		return nil, 0, fmt.Errorf("it belongs to the mount at %v", mount)
	}
	count := l.iclogCount.Uint(b)
	if count == 0 || count > maxIclogs {
		return nil, 0, fmt.Errorf("it has %d buffers", count)
	}
	at := l.iclogs.Pointer(b)
	last = l.cycle.Uint(b)<<32 | l.lastBlock.Uint(b)
	if l.lastBlock.Uint(b) >= l.block.Uint(b) { // the log wraps behind it
		last -= 1 << 32
	}
	for range count {
		b, err := x.c.k.Bytes(at, l.iclogSize)
		if err != nil {
			return nil, 0, err
		}
		header, err := x.c.k.Bytes(l.header.Pointer(b), logHeaderSize)
		if err != nil {
			return nil, 0, err
		}
		r, err := ParseLogRecord(header)
		if err != nil {
			return nil, 0, fmt.Errorf("buffer at %v: %w", at, err)
		}
		if r.Len > 0 { // zero until the buffer is first written
			out = append(out, WrittenRecord{r, !slices.Contains(l.pending, l.state.Uint(b))})
		}
		at = l.next.Pointer(b)
	}
	return out, last, nil
}
