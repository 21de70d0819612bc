package placement

import (
	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// plain are the flags that make no difference to how a regular file is written
// (fs/ext4/ext4.h, EXT4_*_FL: secure deletion, undelete, synchronous, immutable,
// append-only, no dump, no atime, no tail, those of directories, huge_file, extents, and
// inheriting the project ID).
const plain ext4.InodeFlags = ext4.InodeInlineData | 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x8000 | 0x10000 | 0x20000 | 0x20000000 |
	ext4.InodeHugeFile | ext4.InodeExtents

// inode reads the inode of a file as the last transaction leaves it, and refuses it if it is not
// that regular file. The result is valid until the next file.
func (v *volume) inode(f *File) (*ext4.Inode, error) {
	if f.Ino < v.super.FirstInode || f.Ino == v.super.OrphanFile || f.Ino == v.super.JournalInode || f.Ino > addr.Ino(v.super.Inodes) {
		return nil, refuse("inode %d is reserved, the journal, the orphan file, or out of range", f.Ino)
	}
	raw, err := v.rawInode(f.Ino)
	if err != nil {
		return nil, err
	}
	v.file.was = append(v.file.was[:0], raw...)
	i := &v.file.inode
	err = v.super.ReadInode(i, f.Ino, raw)
	switch {
	case err != nil:
		return nil, refuse("%w", err)
	case i.Links == 0 || i.Deleted != 0:
		return nil, refuse("it is deleted, or about to be truncated")
	case !i.IsRegular() || i.Generation != f.Generation:
		return nil, refuse("the disk has another file in its place")
	case i.Flags&^plain != 0:
		return nil, refuse("it has flags %#x", uint32(i.Flags&^plain))
	case f.Size < 0 || uint64(f.Size) < i.Size:
		return nil, refuse("it has %d bytes, and on the disk %d", f.Size, i.Size)
	case f.Size >= 1<<31 && v.super.ROCompat&ext4.ROCompatLargeFile == 0:
		return nil, refuse("it has 2 GiB or more, and the file system lacks the large_file feature")
	case i.Flags&ext4.InodeExtents != 0 && v.super.Incompat&ext4.IncompatExtents == 0:
		return nil, refuse("it has extents, but the file system lacks the extent feature")
	case i.Flags&ext4.InodeExtents == 0 && v.cluster > 1 && i.Flags&ext4.InodeInlineData == 0:
		return nil, refuse("it has indirect blocks, but the file system has bigalloc")
	}
	return i, v.grow(f, i)
}

// updated returns the raw inode of a file with its new size and times. The result is valid until
// the next file.
func (v *volume) updated(f *File, i *ext4.Inode) ([]byte, error) {
	v.file.is = append(v.file.is[:0], v.file.was...)
	raw := v.file.is
	if err := v.outgrow(raw, i); err != nil {
		return nil, err
	}
	ext4.SetSize(raw, uint64(f.Size))
	if err := ext4.SetTimes(raw, f.Atime, f.Mtime, f.Ctime); err != nil {
		return nil, refuse("%w", err)
	}
	for _, q := range v.quotas {
		if err := q.has(raw); err != nil {
			return nil, err
		}
	}
	// The largest i_blocks that the file may get must fit.
	most := uint64(f.Size)/512 + uint64(f.Size)/8192 + 64*uint64(v.cluster)
	if i.Flags&ext4.InodeHugeFile == 0 && i.Sectors+most >= 1<<32 && v.super.ROCompat&ext4.ROCompatHugeFile == 0 {
		return nil, refuse("its i_blocks might overflow, and the file system lacks the huge_file feature")
	}
	return raw, nil
}

// count adds clusters to i_blocks of an inode, and to what the quotas count for its owners.
func (v *volume) count(raw []byte, i *ext4.Inode, clusters uint64) error {
	blocks := clusters * uint64(v.cluster)
	for _, q := range v.quotas {
		if err := q.add(raw, blocks*uint64(v.super.BlockSize)); err != nil {
			return err
		}
	}
	if i.Flags&ext4.InodeHugeFile == 0 {
		blocks *= uint64(v.super.BlockSize / 512)
	}
	return v.super.SetSectors(raw, i.Sectors+blocks)
}

// rawInode returns the bytes of an inode. The caller must not write to them.
func (v *volume) rawInode(n addr.Ino) ([]byte, error) {
	at, offset, err := v.inodeAt(n)
	if err != nil {
		return nil, err
	}
	b, err := v.block(at)
	if err != nil {
		return nil, err
	}
	return b[offset : offset+int(v.super.InodeSize)], nil
}

func (v *volume) inodeAt(n addr.Ino) (addr.Block, int, error) {
	group, block, offset, err := v.super.InodeLocation(n)
	if err != nil {
		return 0, 0, err
	}
	return v.groups[group].InodeTable + addr.Block(block), offset, nil
}

// putInode sets the checksum of a raw inode, and writes the inode.
func (v *volume) putInode(n addr.Ino, raw []byte) error {
	at, offset, err := v.inodeAt(n)
	if err != nil {
		return err
	}
	b, err := v.edit(at)
	if err != nil {
		return err
	}
	v.super.SealInode(n, raw)
	copy(b[offset:], raw)
	return nil
}
