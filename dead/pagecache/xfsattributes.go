package pagecache

import (
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/kernel"
)

// maxXFSLocal bounds what lies in an inode of XFS itself, in bytes: the largest inode has 2 KiB (XFS_DINODE_MAX_SIZE).
const maxXFSLocal = 2 << 10

// maxXFSAttributes bounds the extent of blocks with attributes of one inode, in bytes.
const maxXFSAttributes = 64 << 20

// Attributes returns the extended attributes of an inode, in no particular order. The error is an ErrAttributes if they are not all
// in memory, or were being changed.
func (x *XFS) Attributes(i *Inode) ([]Attribute, error) {
	own, err := x.own(i)
	if err == nil && !x.layout.lock.Free(own) {
		err = errors.New("it was being changed when the kernel died")
	}
	var out []Attribute
	if err == nil {
		out, err = x.attributes(own, i)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAttributes, err)
	}
	return out, nil
}

// MayHaveACL reports whether an inode has an ACL beside its mode, or may have one. Unlike with Attributes, the inode may have been
// changing: few changes are of an ACL.
func (x *XFS) MayHaveACL(i *Inode) bool {
	if !i.ACLUnknown {
		return i.ACL
	}
	own, err := x.own(i)
	if err != nil {
		return true
	}
	// A fork that is just being moved to a block has none for a while (libxfs/xfs_attr_leaf.c, xfs_attr_shortform_to_leaf).
	if f, err := x.attrFork(own); err != nil || f.format != xfsFormatLocal && f.extents == 0 && !x.layout.lock.Free(own) {
		return true
	}
	all, err := x.attributes(own, i)
	return err != nil || slices.ContainsFunc(all, func(a Attribute) bool { return a.Name == accessACL })
}

// attributes returns the attributes of an inode, for which own returned own.
func (x *XFS) attributes(own []byte, i *Inode) ([]Attribute, error) {
	f, err := x.attrFork(own)
	switch {
	case err != nil || f.format == xfsFormatExtents && f.extents == 0:
		return nil, err
	case f.format != xfsFormatLocal:
		return x.attributeBlocks(f, uint64(i.Ino))
	case f.bytes > maxXFSLocal:
		return nil, fmt.Errorf("%w: %d bytes in the inode", errAttribute, f.bytes)
	}
	b, err := x.c.k.Bytes(f.at, int(f.bytes))
	if err != nil {
		return nil, err
	}
	return parseXFSAttributes(b)
}

// attrFork reads the fork that has an inode's attributes. own is what own returned for the inode.
func (x *XFS) attrFork(own []byte) (xfsFork, error) {
	l := x.layout
	switch {
	case l.attrs.Present():
		return l.fork.read(l.attrs.Bytes(own)), nil
	case !l.attrsAt.Present():
		return xfsFork{}, fmt.Errorf("the attribute fork of xfs_inode: %w", kernel.ErrNotFound)
	}
	at := l.attrsAt.Pointer(own)
	if at == 0 {
		return xfsFork{format: xfsFormatExtents}, nil // none
	}
	b, err := x.c.k.Bytes(at, l.fork.size)
	if err != nil {
		return xfsFork{}, err
	}
	return l.fork.read(b), nil
}

// attributeBlocks returns the attributes in blocks of their own, which are the leaves of a tree (libxfs/xfs_da_btree.c). All blocks of the
// fork are read, in whatever order the tree has them.
func (x *XFS) attributeBlocks(f xfsFork, ino uint64) ([]Attribute, error) {
	mapped, err := x.extents(f)
	if err != nil {
		return nil, err
	}
	if len(mapped) == 0 || mapped[0].Off != 0 {
		return nil, fmt.Errorf("%w: no first block", errAttribute)
	}
	var out []Attribute
	size := int64(1) << x.blockLog
	left := int64(maxXFSAttributes)
	for _, m := range mapped {
		if left -= m.Len(); left < 0 || m.Disk == Delayed || m.Unwritten {
			return nil, fmt.Errorf("%w: an extent of %d bytes at %d", errAttribute, m.Len(), m.Disk)
		}
		for at := m.Disk; at < m.Disk+m.Len(); at += size {
			b, err := x.buffer(at)
			if err != nil {
				return nil, err
			}
			some, err := parseXFSLeaf(b, uint64(at)/xfsSector, ino)
			if err != nil {
				return nil, err
			}
			out = append(out, some...)
		}
	}
	return out, nil
}
