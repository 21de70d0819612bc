package pagecache

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/kernel"
)

// Journal is what the kernel's jbd2 knows of the journal (include/linux/jbd2.h,
// struct journal_s).
type Journal struct {
	Addr            addr.Virt
	TailSequence    uint32     // j_tail_sequence: the oldest transaction in the log
	Tail            addr.Block // j_tail: the block of the log in which that one begins
	Head            addr.Block // j_head: the first unused block of the log
	CommitSequence  uint32     // j_commit_sequence: the last committed transaction
	NextTransaction uint32     // j_transaction_sequence: the next transaction to start
	// Aborted says that the kernel had aborted the journal after an error: transactions that
	// were never committed then count as committed (fs/jbd2/commit.c).
	Aborted bool
}

// Ext4 is what the kernel's ext4 has in memory about one mounted file system.
type Ext4 struct {
	Super   ext4.Super // as the kernel has it, which may be ahead of the disk
	Journal *Journal   // nil without a journal
}

// Internal reports whether an inode is the file system's own, or the value of an extended attribute
// (ea_inode). The latter keeps its reference count and a hash in its times, and is written through the
// journal only. It has S_NOQUOTA, since its quota is charged to the inode with the attribute
// (fs/ext4/xattr.c, ext4_xattr_inode_create and ext4_xattr_inode_iget); quota files have S_NOATIME as
// well (fs/ext4/super.c, ext4_quota_on).
func (e *Ext4) Internal(i *Inode) bool {
	value := e.Super.Incompat&ext4.IncompatEAInode != 0 && i.Flags&(FlagNoQuota|FlagNoAtime) == FlagNoQuota
	return value || e.Super.Internal(i.Ino)
}

type ext4Layout struct {
	infoSize              int
	super, journal        kernel.Field // in ext4_sb_info
	options               kernel.Field // likewise: EXT4_MOUNT_*
	journalSize           int
	tailSeq, tail, head   kernel.Field // in journal_s
	commitSeq, transacSeq kernel.Field
	journalSuper, private kernel.Field
	flags, errno          kernel.Field
}

func newExt4Layout(k *kernel.Kernel) (*ext4Layout, error) {
	e := &ext4Layout{}
	l := layoutIn(k, "ext4_sb_info", "ext4")
	e.infoSize = l.Size
	e.super = l.Field("s_es", 8)
	e.journal = l.Field("s_journal", 8)
	e.options = l.Optional("s_mount_opt", 4)
	j := layoutIn(k, "journal_s", "jbd2", "ext4")
	e.journalSize = j.Size
	e.tailSeq = j.Field("j_tail_sequence", 4)
	e.tail = j.Field("j_tail", 8)
	e.head = j.Field("j_head", 8)
	e.commitSeq = j.Field("j_commit_sequence", 4)
	e.transacSeq = j.Field("j_transaction_sequence", 4)
	e.journalSuper = j.Field("j_superblock", 8)
	e.private = j.Field("j_private", 8)
	e.flags, e.errno = j.Field("j_flags", 8), j.Field("j_errno", 4)
	return e, errors.Join(l.Err(), j.Err())
}

// layoutIn looks a structure up in the kernel image, or in the first of these
// modules that has it; where modules have no types, in moduleTypes.
func layoutIn(k *kernel.Kernel, name string, modules ...string) *kernel.Layout {
	image := k.Types().Layout(name)
	if !errors.Is(image.Err(), kernel.ErrNotFound) {
		return image
	}
	for _, module := range modules {
		t, err := k.Module(module)
		if err != nil {
			continue
		}
		if l := t.Layout(name); l.Err() == nil {
			return l
		}
	}
	if l := moduleLayout(k, name); l != nil {
		return l
	}
	return image
}

// Ext4 reads what the kernel's ext4 has in memory about a file system of type
// ext2, ext3 or ext4.
func (c *Cache) Ext4(s *Superblock) (*Ext4, error) {
	super, err := c.extSuper(s)
	if err != nil {
		return nil, fmt.Errorf("read ext4: %w", err)
	}
	e := &Ext4{Super: *super}
	journal, err := c.k.Pointer(c.layout.ext4.journal.In(s.info))
	if err == nil && journal != 0 {
		e.Journal, err = c.journal(s, journal)
	}
	if err != nil {
		return nil, fmt.Errorf("read ext4: journal of %s: %w", s.ID, err)
	}
	return e, nil
}

// extSuper reads the superblock of a file system of the ext family, as the kernel has it.
func (c *Cache) extSuper(s *Superblock) (*ext4.Super, error) {
	l := c.layout.ext4
	if c.layout.ext4Err != nil {
		return nil, c.layout.ext4Err
	}
	if !s.HasBuffers() {
		return nil, fmt.Errorf("%s is of type %q: %w", s.ID, s.Type, ext4.ErrNotExt)
	}
	b, err := c.k.Bytes(s.info, l.infoSize)
	if err != nil {
		return nil, err
	}
	raw, err := c.k.Bytes(l.super.Pointer(b), ext4.SuperSize)
	if err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	super, err := ext4.ParseSuper(raw)
	if err != nil {
		return nil, err
	}
	// The UUID does not change while checksums are seeded from it (fs/ext4/ioctl.c, ext4_ioctl_setuuid);
	// csum_seed keeps the seed elsewhere.
	if super.UUID != s.MountUUID && super.Checksummed() && super.Incompat&ext4.IncompatCsumSeed == 0 {
		return nil, fmt.Errorf("%s: its superblock says it is %v, not %v", s.ID, super.UUID, s.MountUUID)
	}
	return &super, nil
}

// journalMagic begins every metadata block of the journal (include/linux/jbd2.h,
// JBD2_MAGIC_NUMBER), most significant byte first.
const journalMagic = 0xc03b3998

// aborted is JBD2_ABORT (include/linux/jbd2.h).
const aborted = 0x002

// journal reads the journal at an address, and checks that it is that of the file system.
func (c *Cache) journal(s *Superblock, journal addr.Virt) (*Journal, error) {
	l := c.layout.ext4
	b, err := c.k.Bytes(journal, l.journalSize)
	if err != nil {
		return nil, err
	}
	if owner := l.private.Pointer(b); owner != s.Addr {
		return nil, fmt.Errorf("ext4_sb_info belongs to the superblock at %v", owner)
	}
	super, err := c.k.Bytes(l.journalSuper.Pointer(b), 4)
	if err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	if magic := binary.BigEndian.Uint32(super); magic != journalMagic {
		return nil, fmt.Errorf("its superblock begins with %#x", magic)
	}
	return &Journal{
		Addr:            journal,
		TailSequence:    uint32(l.tailSeq.Uint(b)),
		Tail:            addr.Block(l.tail.Uint(b)),
		Head:            addr.Block(l.head.Uint(b)),
		CommitSequence:  uint32(l.commitSeq.Uint(b)),
		NextTransaction: uint32(l.transacSeq.Uint(b)),
		Aborted:         l.flags.Uint(b)&aborted != 0 || l.errno.Uint(b) != 0,
	}, nil
}

// Layout looks up the layout of a structure in the kernel image, or in the first
// of these modules that has it; where modules have no types, in moduleTypes. The
// result's Err says if the structure was not found.
func (c *Cache) Layout(name string, modules ...string) *kernel.Layout {
	return layoutIn(c.k, name, modules...)
}
