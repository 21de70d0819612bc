package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// xfsAttrFork is what is read of the fork that has an inode's attributes (fs/xfs/xfs_inode.h, libxfs/xfs_inode_fork.h).
type xfsAttrFork struct {
	inside, pointer              kernel.Field // in xfs_inode: i_af, and i_afp before 6.0 (commit 2ed5b09b3e8f)
	bytes, data, extents, format kernel.Field
	size                         int
	err                          error
}

func newXFSAttrFork(k *kernel.Kernel) xfsAttrFork {
	inode, f := layoutIn(k, "xfs_inode", "xfs"), layoutIn(k, "xfs_ifork", "xfs")
	a := xfsAttrFork{size: f.Size, bytes: f.Field("if_bytes", 4, 8), extents: f.Field("if_nextents", 4, 8), format: f.Field("if_format", 1)}
	a.data = f.First([]string{"if_u1.if_data", "if_data"}, 8) // as of the fork with data
	a.inside, a.pointer = inode.Optional("i_af", f.Size), inode.Optional("i_afp", 8)
	a.err = errors.Join(inode.Err(), f.Err())
	if !a.inside.Present() && !a.pointer.Present() {
		a.err = errors.Join(a.err, fmt.Errorf("xfs_inode has no attribute fork: %w", kernel.ErrNotFound))
	}
	return a
}

// maxXFSLocal bounds what lies in an inode of XFS itself, in bytes: the largest inode has 2 KiB (XFS_DINODE_MAX_SIZE).
const maxXFSLocal = 2 << 10

// Attributes returns the extended attributes of an inode, in no particular order. The error is an ErrAttributes if they do not all
// lie in the inode itself, or were being changed.
func (x *XFS) Attributes(i *Inode) ([]Attribute, error) {
	out, err := x.attributes(i)
	if err != nil {
		return nil, fmt.Errorf("attributes of inode %d: %w: %w", i.Ino, ErrAttributes, err)
	}
	return out, nil
}

func (x *XFS) attributes(i *Inode) ([]Attribute, error) {
	a := &x.layout.attrs
	b, err := x.own(i)
	switch {
	case err != nil:
		return nil, err
	case a.err != nil:
		return nil, a.err
	case !x.layout.lock.Free(b):
		return nil, errors.New("it was being changed when the kernel died")
	}
	var fork []byte
	if a.inside.Present() {
		fork = a.inside.Bytes(b)
	} else {
		var at addr.Virt
		if at = a.pointer.Pointer(b); at == 0 {
			return nil, nil
		}
		if fork, err = x.c.k.Bytes(at, a.size); err != nil {
			return nil, err
		}
	}
	format, size := a.format.Uint(fork), a.bytes.Uint(fork)
	switch {
	case format == xfsFormatExtents && a.extents.Uint(fork) == 0:
		return nil, nil
	case format != xfsFormatLocal:
		return nil, errors.New("they have blocks of their own")
	case size > maxXFSLocal:
		return nil, fmt.Errorf("%w: %d bytes in the inode", errAttribute, size)
	}
	if b, err = x.c.k.Bytes(a.data.Pointer(fork), int(size)); err != nil {
		return nil, err
	}
	return parseXFSAttributes(b)
}
