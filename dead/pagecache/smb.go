package pagecache

import (
	"errors"
	"fmt"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// smb reports whether a file system is one of the client of SMB (fs/smb/client/cifsfs.c,
// cifs_fs_type and smb3_fs_type).
func (s *Superblock) smb() bool { return s.Type == "cifs" || s.Type == "smb3" }

// shareLayout is what is read of a mount of SMB's (fs/smb/client/cifs_fs_sb.h, fs_context.h).
type shareLayout struct {
	size                         int          // of struct cifs_sb_info
	context, flags, within, root kernel.Field // in that
	name                         kernel.Field // in smb3_fs_context
	super                        kernel.Field // in dentry
}

func newShareLayout(k *kernel.Kernel) (*shareLayout, error) {
	l := &shareLayout{}
	// The context of a mount is kept since 5.11 (commit d17abdf75665), as types of modules are.
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
	flagSlashes = 0x40      // CIFS_MOUNT_POSIX_PATHS: names are parted by slashes
	flagWithin  = 0x1000000 // CIFS_MOUNT_USE_PREFIX_PATH: the superblock's top is not the share's
)

// share is what a mount of SMB's is of.
type share struct {
	server string
	top    string // what the superblock's top directory stands for on it: the share's name first
}

// share reads what a file system of SMB's is of, as it was named at the mount: \\SERVER\SHARE
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
	// The dentry that is mounted, once it is.
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

// What the private word of a folio says to netfs (include/linux/netfs.h), through which the client of
// SMB writes since 6.10 (commit 3ee1a1fc3981). Before, it wrote to the server at once what
// would have left a page partly filled, and kept no private words.
const (
	streamed    = 1     // NETFS_FOLIO_INFO: the rest is the address of a netfs_folio
	copyToCache = 0x356 // NETFS_FOLIO_COPY_TO_CACHE
)

// streamLayout is what is read of a netfs_folio, which says what was written to a folio that was never
// filled.
type streamLayout struct {
	size                  int
	group, offset, length kernel.Field
}

func newStreamLayout(k *kernel.Kernel) (*streamLayout, error) {
	f := layoutIn(k, "netfs_folio", "netfs", "cifs")
	l := &streamLayout{size: f.Size, group: f.Field("netfs_group", 8), offset: f.Field("dirty_offset", 4), length: f.Field("dirty_len", 4)}
	return l, f.Err()
}

// written yields what of a folio of SMB's its server does not have.
func (c *Cache) written(i *Inode, p *pageState, at slotted, yield func(Piece, error) bool) bool {
	l := &c.layout.page
	var private addr.Virt
	if p.has(l.hasPrivate) {
		private = p.private
	}
	filled := p.has(l.uptodate)
	switch {
	case private == copyToCache && filled:
		return true // it is as the server has it, and waits for the cache on this machine's disk
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

// stream returns which bytes of a folio that was never filled were written to. Offset and length change
// one after the other, under the lock of the folio, and only by who has that of the file, too
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
