package pagecache

import (
	"errors"
	"fmt"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// smb reports whether a file system is mounted by the SMB client (fs/smb/client/cifsfs.c,
// cifs_fs_type and smb3_fs_type).
func (s *Superblock) smb() bool { return s.Type == "cifs" || s.Type == "smb3" }

// shareLayout is what is read of an SMB mount (fs/smb/client/cifs_fs_sb.h, fs_context.h).
type shareLayout struct {
	size                         int          // of struct cifs_sb_info
	context, flags, within, root kernel.Field // in cifs_sb_info
	name                         kernel.Field // in smb3_fs_context
	super                        kernel.Field // in dentry
}

func newShareLayout(k *kernel.Kernel) (*shareLayout, error) {
	l := &shareLayout{}
	// The kernel keeps the context of a mount since 5.11 (commit d17abdf75665), as it does types of modules.
	s, f, d := layoutIn(k, "cifs_sb_info", "cifs"), layoutIn(k, "smb3_fs_context", "cifs"), k.Types().Layout("dentry")
	l.size = s.Size
	// An atomic_t later (seen on 7.2).
	l.context, l.flags = s.Field("ctx", 8), s.Field("mnt_cifs_flags", 4)
	l.within, l.root = s.Field("prepath", 8), s.Field("root", 8)
	l.name, l.super = f.Field("UNC", 8), d.Field("d_sb", 8)
	return l, errors.Join(s.Err(), f.Err(), d.Err())
}

// Flags of a mount (fs/smb/client/cifs_fs_sb.h).
const (
	flagSlashes = 0x40      // CIFS_MOUNT_POSIX_PATHS: names are separated by slashes
	flagWithin  = 0x1000000 // CIFS_MOUNT_USE_PREFIX_PATH: the superblock's top is not the share's
)

// share says what an SMB file system was mounted from.
type share struct {
	server string
	top    string // path of the superblock's top directory there, beginning with the share's name
}

// share reads what an SMB file system was mounted from, as it was named at the mount: \\SERVER\SHARE
// (fs/smb/client/fs_context.c, smb3_parse_devname).
func (c *Cache) share(s *Superblock) (share, error) {
	fail := func(err error) (share, error) { return share{}, fmt.Errorf("read share: %s: %w", s.ID, err) }
	l, err := c.shares()
	if err != nil {
		return fail(err)
	}
	b, err := c.k.Bytes(s.info, l.size)
	if err != nil {
		return fail(err)
	}
	// The root member is the dentry that is mounted, once the mount is done.
	owner, err := c.k.Pointer(l.super.In(l.root.Pointer(b)))
	switch {
	case err != nil:
		return fail(err)
	case owner != s.Addr:
		return fail(fmt.Errorf("its structure belongs to superblock at %v", owner))
	}
	name, err := c.text(l.name.In(l.context.Pointer(b)), maxPath)
	if err != nil {
		return fail(err)
	}
	server, top, ok := strings.Cut(strings.TrimPrefix(name, `\\`), `\`)
	if !ok || !strings.HasPrefix(name, `\\`) || server == "" || len(server) > maxServer || top == "" || strings.ContainsAny(server+top, `/\`) {
		return fail(fmt.Errorf("%q is no name of a share", name))
	}
	flags := l.flags.Uint(b)
	if flags&flagWithin == 0 || l.within.Pointer(b) == 0 {
		return share{server, top}, nil
	}
	below, err := c.text(l.within.In(s.info), maxPath)
	if err != nil {
		return fail(err)
	}
	if flags&flagSlashes == 0 {
		below = strings.ReplaceAll(below, `\`, "/")
	}
	return share{server, strings.TrimRight(top+"/"+strings.Trim(below, "/"), "/")}, nil
}

// text reads the string that a pointer in memory points to.
func (c *Cache) text(pointer addr.Virt, limit int) (string, error) {
	at, err := c.k.Pointer(pointer)
	if err != nil {
		return "", err
	}
	return c.k.CString(at, limit)
}

// Values of the private word of a folio for netfs (include/linux/netfs.h), through which the SMB client
// writes since 6.10 (commit 3ee1a1fc3981). Before, the client sent data that would have left a page
// partly filled to the server at once, and used no private words.
const (
	streamed    = 1     // NETFS_FOLIO_INFO: the rest is the address of a netfs_folio
	copyToCache = 0x356 // NETFS_FOLIO_COPY_TO_CACHE
)

// streamLayout is what is read of a netfs_folio, which says which bytes were written to a folio that was
// never filled.
type streamLayout struct {
	size                  int
	group, offset, length kernel.Field
}

func newStreamLayout(k *kernel.Kernel) (*streamLayout, error) {
	f := layoutIn(k, "netfs_folio", "netfs", "cifs")
	l := &streamLayout{size: f.Size, group: f.Field("netfs_group", 8), offset: f.Field("dirty_offset", 4), length: f.Field("dirty_len", 4)}
	return l, f.Err()
}

// written yields the bytes of a folio of an SMB file that the server does not have.
func (c *Cache) written(i *Inode, p *pageState, at slotted, yield func(Piece, error) bool) bool {
	l := &c.layout.page
	var private addr.Virt
	if p.has(l.hasPrivate) {
		private = p.private
	}
	filled := p.has(l.uptodate)
	switch {
	case private == copyToCache && filled:
		return true // the server has the same, and it waits to go to the cache on this machine's disk
	case private&streamed == 0 && private != 0:
		return yield(Piece{}, i.refuse(at.index, p.pages, BadBuffers, fmt.Errorf("private word is %v", private)))
	case filled:
		return yield(whole(p, at), nil)
	case private == 0:
		return yield(Piece{}, i.refuse(at.index, at.pages, NotUptodate, nil))
	}
	span, err := c.stream(i, p, private-streamed)
	if err != nil {
		return yield(Piece{}, i.refuse(at.index, p.pages, BadBuffers, err))
	}
	return yield(p.piece(span.Off, span.End), nil)
}

// stream returns which bytes of a folio that was never filled were written to. Offset and length are
// changed one after the other, under the lock of the folio and that of the file
// (fs/netfs/buffered_write.c, netfs_perform_write; misc.c, netfs_invalidate_folio).
func (c *Cache) stream(i *Inode, p *pageState, at addr.Virt) (addr.Span, error) {
	l, err := c.streams()
	if err != nil {
		return addr.Span{}, err
	}
	b, err := c.k.Bytes(at, l.size)
	if err != nil {
		return addr.Span{}, fmt.Errorf("read netfs_folio: %w", err)
	}
	off := int64(l.offset.Uint(b))
	span := addr.Span{Off: off, End: off + int64(l.length.Uint(b))}
	switch {
	case l.group.Pointer(b) != 0:
		err = fmt.Errorf("netfs_folio at %v has a netfs_group, which SMB does not use", at)
	case span.Len() == 0 || span.End > p.size():
		err = fmt.Errorf("netfs_folio at %v is about bytes %v of a folio of %d", at, span, p.size())
	case i.Writing && p.has(c.layout.page.locked):
		err = fmt.Errorf("netfs_folio at %v was being changed", at)
	}
	return span, err
}
