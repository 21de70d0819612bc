package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// ErrDamaged is wrapped by errors that say that blocks cannot be what a kernel has in memory,
// however far its operations have come.
var ErrDamaged = errors.New("metadata in memory is damaged")

// Plausible checks that changed blocks can be a kernel's, with the given number of open handles.
// The holder of a handle changes one inode, descriptor or bitmap at a time, under a lock, and
// sets its checksum before it releases the lock (fs/ext4/inode.c, ext4_do_update_inode; mballoc.c,
// ext4_mb_mark_diskspace_used): no more checksums may be wrong than the handles explain. The
// bitmaps and the inode table of a group stay where they are, and an inode in use keeps a mode;
// an inode in memory that nobody was writing has its right checksum. Plausible need not
// understand anything else of a file system, and a check cannot repair what it finds without
// losing what was on the disk. The other arguments are those of Check. An error wraps
// ErrDamaged, or says that the disk cannot be read.
func (m Memory) Plausible(old io.ReaderAt, changed map[addr.Block][]byte, handles int) error {
	fs, err := ext4.Open(old)
	if err != nil {
		return fmt.Errorf("judge changed blocks: %w", err)
	}
	p := &plausible{checker: newChecker(fs.Super, old, changed), blocks: make(map[uint32]bool), inodes: make(map[addr.Ino]bool), limit: fs.Super.Blocks}
	p.memory = m
	for _, step := range []func(map[addr.Block][]byte) error{p.super, p.describe, p.bitmaps, p.tables} {
		if err := step(changed); errors.Is(err, errTooMuch) {
			break
		} else if err != nil {
			return fmt.Errorf("judge changed blocks: %w", err)
		}
	}
	if err := p.written(); err != nil {
		return fmt.Errorf("judge changed blocks: %w", err)
	}
	if len(p.torn) > atOnce*handles {
		return fmt.Errorf("%w: more has a wrong checksum than the %d open handles can have been changing: %v", ErrDamaged, handles, p.torn[:min(len(p.torn), maxReasons)])
	}
	if len(p.sizes) > handles {
		return fmt.Errorf("%w: inode %d has another size in memory, and more have than the %d open handles can have been changing", ErrDamaged, p.sizes[0], handles)
	}
	return nil
}

// atOnce is how many checksums one handle may leave wrong at a time: that of an inode whose attributes
// in the inode are being changed, and that of the bitmap or descriptor from which it gets a block for the
// other attributes (fs/ext4/xattr.c, ext4_xattr_set_handle; ialloc.c, __ext4_new_inode, with a block bitmap
// that it initialises).
const atOnce = 2

// plausible is a run of Plausible.
type plausible struct {
	*checker
	torn   []string
	sizes  []addr.Ino        // inodes that have another size in memory
	inodes map[addr.Ino]bool // torn inodes
	blocks map[uint32]bool   // groups whose descriptors are torn
	limit  uint64            // blocks that the file system is to have
}

// written refuses torn inodes that nobody was writing.
func (p *plausible) written() error {
	if len(p.inodes) == 0 || p.memory.Inodes == nil {
		return nil
	}
	all, err := p.memory.Inodes()
	if err != nil {
		return err
	}
	torn := make(map[addr.Ino]bool) // according to memory; an inode that is going away may have the same number
	for _, k := range all {
		if p.inodes[k.Ino] {
			torn[k.Ino] = torn[k.Ino] || k.Torn
		}
	}
	for _, n := range sorted(torn) {
		if !torn[n] {
			return fmt.Errorf("%w: inode %d has a wrong checksum, and nobody was writing it", ErrDamaged, n)
		}
	}
	return nil
}

func (p *plausible) super(changed map[addr.Block][]byte) error {
	home, offset := p.old.super.Location()
	b, ok := changed[home]
	if !ok {
		return nil
	}
	before, err := p.old.block(home)
	if err != nil {
		return err
	}
	if err := sameFixed(before[offset:], b[offset:]); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	err = ext4.CheckSuper(b[offset:][:ext4.SuperSize])
	if errors.Is(err, ext4.ErrChecksum) {
		p.torn, err = append(p.torn, "the superblock"), nil
	} else if err == nil {
		var s ext4.Super
		s, err = ext4.ParseSuper(b[offset:][:ext4.SuperSize])
		p.limit = max(p.limit, s.Blocks)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// describe finds out what the changed blocks are, and judges descriptors.
func (p *plausible) describe(changed map[addr.Block][]byte) error {
	regions := make(map[uint64]*region)
	home, _ := p.old.super.Location()
	for _, b := range sorted(changed) {
		if uint64(b) >= p.old.super.Blocks && uint64(b) < p.limit {
			continue // of groups that were not there before: nothing of them can be lost
		}
		before, err := p.old.block(b)
		if err != nil {
			return err
		}
		after := changed[b]
		if b == home || bytes.Equal(before, after) {
			continue
		}
		if first, ok := p.describes(b); ok {
			if err := p.descriptors(first, before, after); err != nil {
				return err
			}
			continue
		}
		err = p.identify(b, before, after, regions)
		if errors.As(err, new(*foreignError)) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *plausible) descriptors(first uint32, before, after []byte) error {
	size := int(p.old.super.DescSize)
	for at := 0; at+size <= len(after) && uint64(first) < p.old.super.Groups(); at, first = at+size, first+1 {
		was, is := before[at:at+size], after[at:at+size]
		if bytes.Equal(was, is) {
			continue
		}
		// bg_block_bitmap, bg_inode_bitmap and bg_inode_table, and their upper halves
		if !bytes.Equal(was[:0x0c], is[:0x0c]) || size >= 0x2c && !bytes.Equal(was[0x20:0x2c], is[0x20:0x2c]) {
			return fmt.Errorf("%w: the bitmaps or the inode table of group %d move", ErrDamaged, first)
		}
		if _, err := p.new.super.ParseGroup(first, is); errors.Is(err, ext4.ErrChecksum) {
			p.torn, p.blocks[first] = append(p.torn, fmt.Sprintf("descriptor of group %d", first)), true
		}
	}
	return nil
}

// bitmaps judges the bitmaps that change.
func (p *plausible) bitmaps(map[addr.Block][]byte) error {
	for _, n := range sorted(p.groups) {
		if p.blocks[n] {
			continue
		}
		_, err := p.new.blockMap(n)
		if err == nil || errors.Is(err, ext4.ErrChecksum) {
			_, other := p.new.inodeMap(n)
			err = errors.Join(err, other)
		}
		switch failed := (*readError)(nil); {
		case errors.As(err, &failed):
			return failed
		case errors.Is(err, ext4.ErrChecksum):
			p.torn = append(p.torn, err.Error())
		}
	}
	return nil
}

// generationAt is the offset of i_generation, which is random or a number of its own.
const generationAt = 0x64

// unused are the inodes reserved for what no kernel uses: bad blocks, undeletion and snapshots (fs/ext4/ext4.h,
// EXT4_BAD_INO, EXT4_UNDEL_DIR_INO; e2fsprogs' lib/ext2fs/ext2_fs.h, EXT4_EXCLUDE_INO, EXT4_REPLICA_INO).
var unused = []addr.Ino{1, 6, 9, 10}

// tables judges the inodes that change.
func (p *plausible) tables(map[addr.Block][]byte) error {
	size := int(p.old.super.InodeSize)
	had := make(map[uint32]Slot) // the old inodes, by generation
	for s := range p.changedSlots() {
		if before, err := p.old.block(s.Block); err == nil {
			had[binary.LittleEndian.Uint32(before[s.Offset+generationAt:])] = s
		}
	}
	delete(had, 0)
	for s := range p.changedSlots() {
		after, err := p.new.block(s.Block)
		if err != nil {
			return err
		}
		raw := after[s.Offset:][:size]
		if slices.Contains(unused, s.Ino) {
			return fmt.Errorf("%w: inode %d changes, which no kernel uses", ErrDamaged, s.Ino)
		}
		if of, there := had[binary.LittleEndian.Uint32(raw[generationAt:])]; there && of.Ino != s.Ino {
			if err := p.moves(s, of, raw); err != nil {
				return err
			}
		}
		if mode := binary.LittleEndian.Uint16(raw); mode == 0 {
			if i, err := p.old.load(s.Ino); err == nil && i.Mode != 0 {
				return fmt.Errorf("%w: inode %d, which is in use, becomes one without a mode", ErrDamaged, s.Ino)
			}
		}
		if err := p.remembers(s.Ino, raw); err != nil {
			return err
		}
		if tornInode(&p.old.super, s.Ino, raw) {
			p.torn = append(p.torn, fmt.Sprintf("inode %d", s.Ino))
			p.inodes[s.Ino] = true
		}
	}
	return p.failed
}

// remembers compares an inode without a checksum with what memory has of it apart from its block.
func (p *plausible) remembers(n addr.Ino, raw []byte) error {
	const (
		format, regular, directory = 0xf000, 0x8000, 0x4000 // S_IFMT, S_IFREG, S_IFDIR: others have no map
		inline                     = 0x10000000             // EXT4_INLINE_DATA_FL
	)
	le := binary.LittleEndian
	kind := le.Uint16(raw) & format
	if p.memory.Inode == nil || p.old.super.ROCompat&ext4.ROCompatMetadataCsum != 0 || kind != regular && kind != directory || le.Uint32(raw[0x20:])&inline != 0 {
		return nil
	}
	root, size, known := p.memory.Inode(n)
	if !known {
		return nil
	}
	if !bytes.Equal(raw[0x28:0x64], root) { // i_block
		return fmt.Errorf("%w: inode %d lies elsewhere by its block than by its memory, and no operation on it was in flight", ErrDamaged, n)
	}
	switch inBlock := uint64(le.Uint32(raw[0x04:])) | uint64(le.Uint32(raw[0x6c:]))<<32; { // i_size_lo, i_size_high
	case inBlock > uint64(size): // an operation that makes a file shorter holds its lock
		return fmt.Errorf("%w: inode %d is longer by its block than by its memory, and no operation on it was in flight", ErrDamaged, n)
	case inBlock < uint64(size):
		p.sizes = append(p.sizes, n)
	}
	return nil
}

// moves refuses an inode that becomes what another inode of the same generation was. Among many new and many old
// inodes, two may have the same generation by chance. But they do not also have the same creation time, which an
// inode keeps; nor, where they have none, the same mode, owner, size and block map and, if they have no blocks, times.
func (p *plausible) moves(s, of Slot, raw []byte) error {
	before, err := p.old.block(s.Block)
	if err != nil {
		return err
	}
	had, err := p.old.block(of.Block)
	if err != nil {
		return err
	}
	was := had[of.Offset:][:len(raw)]
	same := bytes.Equal(raw[:0x08], was[:0x08]) && bytes.Equal(raw[0x28:0x64], was[0x28:0x64]) &&
		(!zero(raw[0x1c:0x20]) || bytes.Equal(raw[0x08:0x14], was[0x08:0x14])) // i_blocks; from i_atime to i_mtime
	if created(raw) {
		same = bytes.Equal(raw[0x90:0x98], was[0x90:0x98])
	}
	if !same || bytes.Equal(raw[generationAt:][:4], before[s.Offset+generationAt:][:4]) {
		return nil
	}
	return fmt.Errorf("%w: inode %d gets the content of inode %d", ErrDamaged, s.Ino, of.Ino)
}

// created reports whether an inode has a creation time: its i_extra_isize has room for i_crtime, and i_crtime_extra
// behind it, and they are not both 0 (fs/ext4/ext4.h, EXT4_FITS_IN_INODE).
func created(raw []byte) bool {
	return len(raw) >= 0x98 && binary.LittleEndian.Uint16(raw[0x80:]) >= 0x98-0x80 && !zero(raw[0x90:0x98])
}
