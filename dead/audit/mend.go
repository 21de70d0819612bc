package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Mended is what completes a set of changed blocks of which operations in flight had
// changed only some.
type Mended struct {
	Blocks map[addr.Block][]byte // to be changed in addition, or instead
	// Released are blocks that the changes had in use, but that nothing owns. They are free once
	// mended, but memory may take them for a file's: nothing may be put there before the next mount.
	Released []addr.Block
	What     []string // what was mended, a line each
	// Gone are inodes that were being created or removed, and are free once mended.
	Gone map[addr.Ino]struct{}
}

// maxRounds bounds the rounds of mending: what one round mends may show what else is half
// done.
const maxRounds = 16

// Mend completes what operations in flight left half done, where the rest of the metadata
// says what it must be:
//
//   - checksums of the superblock, descriptors, bitmaps, inodes and extent nodes, which the
//     kernel sets after what they cover;
//   - bitmaps and counts of groups, by what inodes own and which of them are in use: the kernel
//     allocates blocks and inodes before anything owns them;
//   - i_blocks, the links of directories, and the user count of a block of attributes, if no
//     inode that changes begins or ceases to use the block;
//   - an inode that was being created and has no name yet (ext4_add_nondir, ext4_mkdir), however
//     much of it is there: it is free again;
//   - a rename or link whose new name is there while the old one is not gone: it is taken back,
//     if Memory.Names says what programs saw; a directory that was moved gets its new parent;
//   - an inode whose name is gone while its links still count it (ext4_unlink, ext4_rmdir), or
//     that was being freed (ext4_evict_inode): it becomes what it is when that is done.
//
// Anything else that is half done stays so. The first two arguments are those of Check, which
// has to judge the outcome, and relies on nothing here. operations is how many were in flight:
// no more inodes may lack a name. An error means that something cannot be mended.
func Mend(old io.ReaderAt, changed map[addr.Block][]byte, operations int) (*Mended, error) {
	return Memory{}.Mend(old, changed, operations)
}

// Mend is the function Mend with a kernel's memory. Without names, an inode that has lost its
// name is taken for one that was being unlinked.
func (k Memory) Mend(old io.ReaderAt, changed map[addr.Block][]byte, operations int) (*Mended, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return nil, fmt.Errorf("mend: %w", err)
	}
	m := &mender{super: fs.Super, old: old, over: maps.Clone(changed), operations: operations, with: k, out: &Mended{Blocks: make(map[addr.Block][]byte), Gone: make(map[addr.Ino]struct{})}}
	if m.over == nil {
		m.over = make(map[addr.Block][]byte)
	}
	for range maxRounds {
		again, err := m.round()
		if err != nil {
			return nil, fmt.Errorf("mend: %w", err)
		}
		if !again {
			return m.out, nil
		}
	}
	return nil, fmt.Errorf("mend: after %d rounds there is still something to mend", maxRounds)
}

// mender goes through the changes until nothing is left to be mended.
type mender struct {
	super ext4.Super
	old   io.ReaderAt
	over  map[addr.Block][]byte

	operations int // in flight, each of which may have removed a name, or not added it yet
	with       Memory
	out        *Mended
	dirty      bool // something was mended in this round
	*checker
}

// round mends one kind of thing, and reports whether there may be more to mend: what it
// mended may have hidden other things.
func (m *mender) round() (bool, error) {
	m.dirty = false
	m.checker = newChecker(m.super, m.old, m.over)
	m.memory = m.with
	m.torn = make(map[addr.Block][]byte)
	for _, step := range []func() error{
		m.mendSuper,
		func() error { m.superblock(m.over); return nil },
		m.mendDescriptors,
		func() error { m.classify(m.over); return nil },
		m.mendBitmapSums,
		m.mendInodeSums,
		m.mendInodeMaps,
		func() error { m.slots(); m.readOrphans(); return nil },
		m.mendNodes,
		func() error { m.findOwners(); return nil },
		m.mendUsers,
		m.mendMade,
		m.mendLeaves,
		m.mendLinks,
		m.mendSectors,
		m.mendSizes,
		m.mendGroups,
	} {
		if err := step(); err != nil {
			return false, err
		}
		if m.failed != nil {
			return false, m.failed
		}
		if len(m.verdict.Reasons) > 0 {
			return false, errors.New(m.verdict.Reasons[0])
		}
		if m.dirty {
			return true, nil
		}
	}
	return false, nil
}

// edit returns a block that the caller may write to, and makes it part of the outcome.
func (m *mender) edit(at addr.Block) ([]byte, error) {
	m.dirty = true
	if b, there := m.out.Blocks[at]; there {
		return b, nil
	}
	b, err := m.new.block(at)
	if err != nil {
		return nil, err
	}
	b = bytes.Clone(b)
	m.over[at], m.out.Blocks[at] = b, b
	return b, nil
}

func (m *mender) tell(format string, args ...any) {
	m.out.What = append(m.out.What, fmt.Sprintf(format, args...))
}

// mendSuper sets the checksum of a superblock that was being changed (fs/ext4/orphan.c,
// ext4_orphan_add).
func (m *mender) mendSuper() error {
	home, offset := m.super.Location()
	b := m.over[home]
	if len(b) < offset+ext4.SuperSize || !errors.Is(ext4.CheckSuper(b[offset:][:ext4.SuperSize]), ext4.ErrChecksum) {
		return nil
	}
	s, err := ext4.ParseSuper(b[offset:])
	if err != nil {
		return err
	}
	sealed, err := ext4.SetLastOrphan(b[offset:], s.LastOrphan)
	if err != nil {
		return err
	}
	if b, err = m.edit(home); err != nil {
		return err
	}
	copy(b[offset:], sealed)
	m.tell("superblock: checksum")
	return nil
}

// mendInodeSums sets the checksums of inodes that were being written
// (fs/ext4/inode.c, ext4_do_update_inode).
func (m *mender) mendInodeSums() error {
	for s := range m.changedSlots() {
		if !tornInode(&m.super, s.Ino, m.over[s.Block][s.Offset:][:m.super.InodeSize]) {
			continue
		}
		b, err := m.edit(s.Block)
		if err != nil {
			return err
		}
		m.super.SealInode(s.Ino, b[s.Offset:][:m.super.InodeSize])
		m.tell("inode %d: checksum", s.Ino)
	}
	return nil
}

// mendNodes maps the touched inodes, and sets the checksums of extent nodes that were being
// written.
func (m *mender) mendNodes() error {
	m.walkAll()
	for _, at := range sorted(m.torn) {
		b, err := m.edit(at)
		if err != nil {
			return err
		}
		copy(b, m.torn[at])
		m.tell("extent node at block %d: checksum", at)
	}
	return nil
}

// raw lets put change the bytes of an inode, and sets the inode's checksum afterwards.
func (m *mender) raw(n addr.Ino, put func(raw []byte)) error {
	group, block, offset, err := m.super.InodeLocation(n)
	if err != nil {
		return err
	}
	g, err := m.new.group(group)
	if err != nil {
		return err
	}
	b, err := m.edit(g.InodeTable + addr.Block(block))
	if err != nil {
		return err
	}
	raw := b[offset:][:m.super.InodeSize]
	put(raw)
	m.super.SealInode(n, raw)
	return nil
}

// free makes an inode one that is not in use. Its i_dtime becomes the time of its last change:
// a small number there would be the link to the next orphan.
func (m *mender) free(n addr.Ino) error {
	m.out.Gone[n] = struct{}{}
	return m.raw(n, m.super.Free)
}

// setLinks sets how many links an inode has.
func (m *mender) setLinks(n addr.Ino, links int) error {
	m.tell("inode %d: %d links", n, links)
	return m.raw(n, func(raw []byte) { binary.LittleEndian.PutUint16(raw[0x1a:], uint16(links)) })
}

// mendUsers takes back a change of a block's user count (h_refcount) where no inode that begins
// or ceases to use that block of attributes was written yet: the kernel writes the inode later
// (fs/ext4/xattr.c, ext4_xattr_release_block, ext4_xattr_block_set).
func (m *mender) mendUsers() error {
	for _, at := range m.unclaimed {
		before, err := m.checker.old.block(at)
		if err != nil {
			return err
		}
		after, err := m.new.block(at)
		if err != nil {
			return err
		}
		was, err := m.sharers(m.checker.old, at)
		if err != nil || was == 0 || !sameButUsers(before, after) {
			continue // it is something else
		}
		b, err := m.edit(at)
		if err != nil {
			return err
		}
		copy(b, before)
		m.tell("attributes at block %d: used by %d inodes still", at, was)
	}
	return nil
}

// sameButUsers reports whether two blocks of attributes are equal except for the user count and the
// checksum (fs/ext4/xattr.h, struct ext4_xattr_header).
func sameButUsers(a, b []byte) bool {
	return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[8:16], b[8:16]) && bytes.Equal(a[20:], b[20:])
}

// mendMade frees directories that were being created. While such an inode has one link, it gets its
// first block, and in it "." and ".."; the second link comes last (fs/ext4/namei.c,
// ext4_init_new_dir). The name comes after that: if there is one nevertheless, the audit finds it.
func (m *mender) mendMade() error {
	for _, n := range sorted(m.inodes) {
		i := m.inodes[n]
		if i.made() && i.new.live() && (i.new.Links == 1 || !m.begins(i)) {
			if err := m.operation(); err != nil {
				return err
			}
			m.tell("inode %d: a directory that was being made, without what is in it", n)
			if err := m.free(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// made reports whether an inode is in use, and before was not, or was another one.
func (i *inode) made() bool {
	return i.new.inUse() && (!i.old.inUse() || i.old.Generation != i.new.Generation)
}

// begins reports whether all blocks of a directory are there, and the first one begins as it must.
func (m *mender) begins(i *inode) bool {
	blocks := m.directoryBlocks(i.new)
	if len(blocks) == 0 || slices.Contains(blocks, 0) || i.new.Size != uint64(len(blocks))*uint64(m.super.BlockSize) {
		return false
	}
	b, err := m.new.block(blocks[0])
	if err != nil {
		return false
	}
	list, err := m.new.lenient(b)
	if err != nil || m.checkEntryNames(i.number, true, list) != nil {
		return false
	}
	if i.new.Flags&ext4.InodeIndex == 0 {
		_, err = m.new.leafEntries(i.new.Inode, b)
	}
	return err == nil || errors.Is(err, ext4.ErrChecksum)
}

// mendLeaves sets the checksums of directory blocks that were being changed: the kernel adds a
// name before it sets the checksum of the block (fs/ext4/namei.c, add_dirent_to_buf).
func (m *mender) mendLeaves() error {
	if !m.super.Checksummed() {
		return nil
	}
	for _, n := range sorted(m.inodes) {
		i := m.inodes[n]
		if !i.new.live() {
			continue
		}
		for place, at := range m.directoryBlocks(i.new) {
			data, changed := m.over[at]
			if !changed || !m.changed(at) {
				continue
			}
			if i.new.Flags&ext4.InodeIndex != 0 && (place == 0 || int(binary.LittleEndian.Uint16(data[4:])) == len(data)) {
				continue // a node of the index
			}
			if _, err := m.new.leafEntries(i.new.Inode, data); !errors.Is(err, ext4.ErrChecksum) {
				continue
			}
			b, err := m.edit(at)
			if err != nil {
				return err
			}
			end := len(b) - entryTail
			binary.LittleEndian.PutUint32(b[end+8:], ext4.CRC32C(i.new.Seed, b[:end]))
			m.tell("block %d of directory %d: checksum", at, n)
		}
	}
	return nil
}

// mendSectors makes i_blocks agree with the blocks that inodes have.
func (m *mender) mendSectors() error {
	for _, n := range sorted(m.inodes) {
		i := m.inodes[n]
		if i.new == nil || m.checkSectors(i) == nil {
			continue
		}
		sectors := m.sectorsOf(i)
		if !i.new.IsRegular() && !i.new.IsDir() && (i.new.Links > 0 || !i.new.IsSymlink()) {
			continue // the sectors of a symbolic link say where its target is, unless it is to be deleted
		}
		if i.new.Flags&ext4.InodeHugeFile != 0 {
			sectors /= uint64(m.super.BlockSize / 512)
		}
		var failed error
		if err := m.raw(n, func(raw []byte) { failed = m.super.SetSectors(raw, sectors) }); err != nil || failed != nil {
			return errors.Join(err, failed)
		}
		m.tell("inode %d: %d sectors instead of %d", n, sectors, i.new.Sectors)
	}
	return nil
}

// mendSizes makes a mount truncate files that got blocks beyond their end before their size
// was changed: it adds them to the orphan list, as the kernel itself does with such files when
// it knows of them (fs/ext4/inode.c, ext4_write_begin).
func (m *mender) mendSizes() error {
	for _, n := range sorted(m.inodes) {
		i := m.inodes[n]
		if i.new == nil || !i.new.IsRegular() || i.new.Attributes != 0 || ratio(&m.super) > 1 {
			continue // e2fsck would damage it (see package journal, keepOrphans)
		}
		if _, ok := m.beyond(i); !ok {
			continue
		}
		home, offset := m.new.super.Location()
		b, err := m.edit(home)
		if err != nil {
			return err
		}
		next := m.new.super.LastOrphan
		super, err := ext4.SetLastOrphan(b[offset:], n)
		if err != nil {
			return err
		}
		copy(b[offset:], super)
		m.tell("inode %d: to be truncated to its %d bytes", n, i.new.Size)
		return m.raw(n, func(raw []byte) { binary.LittleEndian.PutUint32(raw[0x14:], uint32(next)) }) // i_dtime
	}
	return nil
}
