package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// xfsBufferLayout is what is read of the buffers of xfs, which have its metadata (fs/xfs/xfs_buf.h). They are in hash tables: of
// each allocation group (pag_buf_hash, and pag_bcache.bc_hash on 6.12), or of the device (bt_hash, seen on 7.2).
type xfsBufferLayout struct {
	size                             int
	node, sector, mount, data, flags kernel.Field
	length                           kernel.Field
	ofGroup                          kernel.Field // in xfs_perag
	device, ofDevice                 kernel.Field // in xfs_mount, xfs_buftarg
	hash                             rhashLayout
	err                              error
}

func newXFSBufferLayout(k *kernel.Kernel) xfsBufferLayout {
	b, g := layoutIn(k, "xfs_buf", "xfs"), layoutIn(k, "xfs_perag", "xfs")
	d, m := layoutIn(k, "xfs_buftarg", "xfs"), layoutIn(k, "xfs_mount", "xfs")
	l := xfsBufferLayout{size: b.Size, node: b.Field("b_rhash_head", 8), sector: b.Field("b_rhash_key", 8), mount: b.Field("b_mount", 8)}
	l.data, l.flags, l.length = b.Field("b_addr", 8), b.Field("b_flags", 4), b.Field("b_length", 4)
	l.device, l.ofDevice = m.Field("m_ddev_targp", 8), d.Optional("bt_hash")
	if !l.ofDevice.Present() {
		l.ofGroup = g.First([]string{"pag_buf_hash", "pag_bcache.bc_hash"})
	}
	var err error
	l.hash, err = newRhashLayout(k)
	l.err = errors.Join(b.Err(), g.Err(), d.Err(), m.Err(), err)
	return l
}

// XBF_DONE and XBF_STALE (fs/xfs/xfs_buf.h, the same on 6.1 and 6.12): the content is valid, and the buffer must not be found.
const (
	xfsBufferDone  = 1 << 5
	xfsBufferStale = 1 << 6
)

// xfsSector is the unit of a buffer's place and length, in bytes (BBSIZE).
const xfsSector = 512

// buffer returns the bytes of the block that begins at a place on the device. The error is ErrNotCached if
// memory does not have it. All buffers are looked through once.
func (x *XFS) buffer(disk int64) ([]byte, error) {
	if x.buffers == nil && x.buffersErr == nil {
		x.buffers, x.buffersErr = x.allBuffers()
	}
	if x.buffersErr != nil {
		return nil, x.buffersErr
	}
	at, ok := x.buffers[disk]
	if !ok {
		return nil, fmt.Errorf("block at %d: %w", disk, ErrNotCached)
	}
	return x.c.k.Bytes(at, 1<<x.blockLog)
}

// maxXFSBuffers bounds the buffers of a file system, and the buckets that they are in.
const maxXFSBuffers = 1 << 23

// allBuffers returns where memory has blocks of the file system's device, by place on it.
func (x *XFS) allBuffers() (map[int64]addr.Virt, error) {
	l := &x.layout.buffers
	if l.err != nil {
		return nil, l.err
	}
	out := make(map[int64]addr.Virt)
	left := maxXFSBuffers
	if l.ofDevice.Present() {
		device, err := x.c.k.Pointer(l.device.In(x.s.info))
		if err == nil {
			err = x.buffersIn(l.ofDevice.In(device), &left, out)
		}
		return out, err
	}
	for group, err := range x.c.pointers(x.s.info + addr.Virt(x.layout.groups.Off)) {
		if err == nil {
			err = x.ofMount(group)
		}
		if err == nil {
			err = x.buffersIn(l.ofGroup.In(group), &left, out)
		}
		if err != nil {
			return nil, fmt.Errorf("buffers: %w", err)
		}
	}
	return out, nil
}

// buffersIn adds the buffers in a hash table.
func (x *XFS) buffersIn(table addr.Virt, left *int, out map[int64]addr.Virt) error {
	l := &x.layout.buffers
	for at, err := range x.c.hashed(table, l.hash, left) {
		if err != nil {
			return err
		}
		b, err := x.c.k.Bytes(at-addr.Virt(l.node.Off), l.size)
		if err != nil {
			return err
		}
		if mount := l.mount.Pointer(b); mount != x.s.info {
			return fmt.Errorf("%w: the buffer at %v belongs to the mount at %v", errRhash, at, mount)
		}
		sector, length, flags := l.sector.Uint(b), l.length.Uint(b), l.flags.Uint(b)
		if sector > 1<<62/xfsSector || length != 1<<x.blockLog/xfsSector || flags&xfsBufferDone == 0 || flags&xfsBufferStale != 0 {
			continue
		}
		out[int64(sector)*xfsSector] = l.data.Pointer(b)
	}
	return nil
}
