package pagecache

import (
	"errors"

	"understudy.dev/understudy/dead/kernel"
)

// layout holds where the members of the kernel's structures are. All of them are
// looked up once.
type layout struct {
	super   superLayout
	ext4    *ext4Layout // nil if ext4 is not there
	bdi     bdiLayout
	inode   inodeLayout
	node    nodeLayout
	page    pageLayout
	buffer  bufferLayout
	dentry  dentryLayout
	ext4Err error // why ext4 is nil
}

type superLayout struct {
	size                                              int
	list, dev, blockSize, typ, flags, root, bdi, info kernel.Field
	id, uuid, inodes, writeback                       kernel.Field
	wrong                                             kernel.Field
	sync                                              kernel.Lock
	typeName                                          kernel.Field // in file_system_type
}

type bdiLayout struct {
	wbSize                             int
	list                               kernel.Field // in backing_dev_info
	root                               kernel.Field // likewise: the wb that is always there
	node, dirty, io, moreIO, dirtyTime kernel.Field // in bdi_writeback
	backPointer                        kernel.Field
	lock                               kernel.Lock
}

func newLayout(k *kernel.Kernel) (*layout, error) {
	t := k.Types()
	l := &layout{}
	var errs []error
	for _, part := range []func(*kernel.Types) error{
		l.super.look, l.bdi.look, l.inode.look, l.node.look, l.page.look, l.buffer.look, l.dentry.look,
	} {
		errs = append(errs, part(t))
	}
	l.ext4, l.ext4Err = newExt4Layout(k)
	return l, errors.Join(errs...)
}

func (s *superLayout) look(t *kernel.Types) error {
	l := t.Layout("super_block")
	s.size = l.Size
	s.list = l.Field("s_list", 16)
	s.dev = l.Field("s_dev", 4)
	s.blockSize = l.Field("s_blocksize", 8)
	s.typ = l.Field("s_type", 8)
	s.flags = l.Field("s_flags", 8)
	s.root = l.Field("s_root", 8)
	s.bdi = l.Field("s_bdi", 8)
	s.info = l.Field("s_fs_info", 8)
	s.id = l.Field("s_id")
	s.uuid = l.Field("s_uuid", 16)
	s.inodes = l.Field("s_inodes", 16)
	s.writeback = l.Field("s_inodes_wb", 16)
	s.sync = l.Lock("s_sync_lock")
	s.wrong = l.Optional("s_wb_err", 4)
	f := t.Layout("file_system_type")
	s.typeName = f.Field("name", 8)
	return errors.Join(l.Err(), f.Err())
}

func (b *bdiLayout) look(t *kernel.Types) error {
	l := t.Layout("backing_dev_info")
	b.list = l.Field("wb_list", 16)
	b.root = l.Field("wb")
	w := t.Layout("bdi_writeback")
	b.wbSize = w.Size
	b.backPointer = w.Field("bdi", 8)
	b.node = w.Field("bdi_node", 16)
	b.dirty = w.Field("b_dirty", 16)
	b.io = w.Field("b_io", 16)
	b.moreIO = w.Field("b_more_io", 16)
	b.dirtyTime = w.Field("b_dirty_time", 16)
	b.lock = w.Lock("list_lock")
	return errors.Join(l.Err(), w.Err())
}
