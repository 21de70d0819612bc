package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// ErrRange says that an inode has no room for a value.
var ErrRange = errors.New("the inode has no room for it")

// SetSize stores a size, in bytes, in the raw inode of a regular file.
func SetSize(raw []byte, size uint64) {
	binary.LittleEndian.PutUint32(raw[0x04:], uint32(size))
	binary.LittleEndian.PutUint32(raw[0x6c:], uint32(size>>32))
}

// Free marks a raw inode as deleted: without links, and with an i_dtime of at least the number of
// inodes. A smaller one would look like the link to the next inode on the orphan list.
func (s *Super) Free(raw []byte) {
	binary.LittleEndian.PutUint16(raw[0x1a:], 0)
	if binary.LittleEndian.Uint32(raw[0x14:]) < s.Inodes {
		binary.LittleEndian.PutUint32(raw[0x14:], max(binary.LittleEndian.Uint32(raw[0x0c:]), s.Inodes)) // i_dtime, i_ctime
	}
}

// SetSectors stores i_blocks in a raw inode, in the unit that the field has there (see
// Inode.Sectors). Without the huge_file feature the field has 32 bits.
func (s *Super) SetSectors(raw []byte, n uint64) error {
	if n > 1<<48-1 || n > 1<<32-1 && s.ROCompat&ROCompatHugeFile == 0 {
		return fmt.Errorf("%w: %d sectors", ErrRange, n)
	}
	binary.LittleEndian.PutUint32(raw[0x1c:], uint32(n))
	if s.ROCompat&ROCompatHugeFile != 0 {
		binary.LittleEndian.PutUint16(raw[0x74:], uint16(n>>32))
	}
	return nil
}

// SetTimes stores times in a raw inode: 32 bits of seconds and, where the inode has room
// for them, 30 bits of nanoseconds and two more bits of seconds (fs/ext4/ext4.h,
// EXT4_INODE_SET_XTIME, ext4_encode_extra_time).
func SetTimes(raw []byte, atime, mtime, ctime time.Time) error {
	for _, t := range []struct {
		low, extra int
		at         time.Time
	}{{0x08, 0x8c, atime}, {0x0c, 0x84, ctime}, {0x10, 0x88, mtime}} {
		seconds := t.at.Unix()
		roomy := len(raw) > goodOldInodeSize && t.extra+4 <= goodOldInodeSize+int(binary.LittleEndian.Uint16(raw[goodOldInodeSize:]))
		epoch := (seconds - int64(int32(seconds))) >> 32
		if epoch < 0 || epoch > 3 || epoch > 0 && !roomy {
			return fmt.Errorf("%w: a time of %d seconds", ErrRange, seconds)
		}
		binary.LittleEndian.PutUint32(raw[t.low:], uint32(seconds))
		if roomy {
			binary.LittleEndian.PutUint32(raw[t.extra:], uint32(t.at.Nanosecond())<<2|uint32(epoch))
		}
	}
	return nil
}

// BitmapChecksum returns the checksum of a group's block bitmap (fs/ext4/bitmap.c,
// ext4_block_bitmap_csum_set), over one bit for each cluster that a group has at most. If
// descriptors have 32 bytes, it is only the lower half, as they store no more.
func (s *Super) BitmapChecksum(bits []byte) uint32 {
	sum := CRC32C(s.ChecksumSeed, bits[:s.BlocksPerGroup/(s.ClusterSize/s.BlockSize)/8])
	if s.DescSize < 64 {
		sum &= 0xffff
	}
	return sum
}

// InodeBitmapChecksum is BitmapChecksum for a group's inode bitmap
// (ext4_inode_bitmap_csum_set).
func (s *Super) InodeBitmapChecksum(bits []byte) uint32 {
	sum := CRC32C(s.ChecksumSeed, bits[:s.InodesPerGroup/8])
	if s.DescSize < 64 {
		sum &= 0xffff
	}
	return sum
}

// SetGroup stores in a raw group descriptor what an allocation changes: the counts and the
// checksums of the bitmaps and, if descriptors have checksums, the flags, bg_itable_unused
// and its own checksum. Without checksums the flags and bg_itable_unused have no meaning.
func (s *Super) SetGroup(b []byte, g *Group) {
	put := func(low, high int, v uint32) {
		binary.LittleEndian.PutUint16(b[low:], uint16(v))
		if s.DescSize >= 64 {
			binary.LittleEndian.PutUint16(b[high:], uint16(v>>16))
		}
	}
	put(0x0c, 0x2c, g.FreeClusters)
	put(0x0e, 0x2e, g.FreeInodes)
	put(0x10, 0x30, g.Directories)
	if s.Checksummed() {
		put(0x18, 0x38, g.BlockBitmapCsum)
		put(0x1a, 0x3a, g.InodeBitmapCsum)
	}
	if s.ROCompat&(ROCompatGDTCsum|ROCompatMetadataCsum) != 0 {
		put(0x1c, 0x32, g.UnusedInodes)
		binary.LittleEndian.PutUint16(b[0x12:], uint16(g.Flags))
		s.SealGroup(g.Number, b)
	}
}

// SealGroup computes the checksum of a raw group descriptor and stores it there.
func (s *Super) SealGroup(n uint32, b []byte) {
	binary.LittleEndian.PutUint16(b[0x1e:], s.groupChecksum(n, b))
}

// SetFree returns a copy of the superblock b with these numbers of free clusters and free
// inodes, and its checksum. It does not change b.
func SetFree(b []byte, clusters uint64, inodes uint32) ([]byte, error) {
	s, err := ParseSuper(b)
	if err != nil {
		return nil, err
	}
	clusters *= uint64(s.ClusterSize / s.BlockSize) // the superblock counts blocks
	return edit(b, func(out []byte) {
		binary.LittleEndian.PutUint32(out[0x0c:], uint32(clusters))
		binary.LittleEndian.PutUint32(out[0x10:], inodes)
		if s.Incompat&Incompat64Bit != 0 {
			binary.LittleEndian.PutUint32(out[0x158:], uint32(clusters>>32))
		}
	})
}

// PutExtents writes an extent tree node without its checksum: a header, whose eh_max is the
// number of entries that fit, and the entries (fs/ext4/ext4_extents.h). A node that fills a
// block leaves 4 bytes for the checksum, whether it has one or not.
func PutExtents(node []byte, level int, runs []Run, below []Index) error {
	n := max(len(runs), len(below))
	room := (len(node) - ExtentSize) / ExtentSize
	if n > room || len(runs) > 0 && level > 0 || len(below) > 0 && level == 0 {
		return fmt.Errorf("%d entries in room for %d", n, room)
	}
	clear(node)
	le := binary.LittleEndian
	le.PutUint16(node, ExtentMagic)
	le.PutUint16(node[2:], uint16(n))
	le.PutUint16(node[4:], uint16(room))
	le.PutUint16(node[6:], uint16(level))
	for at, r := range runs {
		e, length := node[ExtentSize*(at+1):], r.Length
		if length == 0 || length > MaxRun || r.Unwritten && length == MaxRun {
			return fmt.Errorf("an extent of %d blocks", length)
		}
		if r.Unwritten {
			length += MaxRun
		}
		le.PutUint32(e, r.Logical)
		le.PutUint16(e[4:], uint16(length))
		le.PutUint16(e[6:], uint16(r.Physical>>32))
		le.PutUint32(e[8:], uint32(r.Physical))
	}
	for at, x := range below {
		e := node[ExtentSize*(at+1):]
		le.PutUint32(e, x.Logical)
		le.PutUint32(e[4:], uint32(x.Node))
		le.PutUint16(e[8:], uint16(x.Node>>32))
	}
	return nil
}
