package pagecache

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// nfs reports whether a file system is NFS, of any version.
func (s *Superblock) nfs() bool { return s.Type == "nfs" || s.Type == "nfs4" }

// nfsLayout is what is read of the structures of the NFS client (include/linux/nfs_page.h,
// nfs_fs_sb.h).
type nfsLayout struct {
	pageSize                               int // of struct nfs_page
	page, index, start, length, next, head kernel.Field
	flags                                  kernel.Field
	mapped                                 uint // bit number of PG_MAPPED in flags
	serverSize                             int
	client, super                          kernel.Field // in nfs_server
	host                                   kernel.Field // in nfs_client
	fsdata                                 kernel.Field // in dentry
}

func newNFSLayout(k *kernel.Kernel) (*nfsLayout, error) {
	n := &nfsLayout{}
	p := layoutIn(k, "nfs_page", "nfs")
	n.pageSize = p.Size
	// In a union with wb_folio later (seen on 6.12).
	n.page = p.First([]string{"wb_page", "wb_folio"}, 8)
	n.index, n.start, n.length = p.Field("wb_index", 8), p.Field("wb_pgbase", 4), p.Field("wb_bytes", 4)
	n.next, n.head, n.flags = p.Field("wb_this_page", 8), p.Field("wb_head", 8), p.Field("wb_flags", 8)
	s, c, d := layoutIn(k, "nfs_server", "nfs"), layoutIn(k, "nfs_client", "nfs"), k.Types().Layout("dentry")
	n.serverSize = s.Size
	n.client, n.super = s.Field("nfs_client", 8), s.Field("super", 8)
	n.host, n.fsdata = c.Field("cl_hostname", 8), d.Field("d_fsdata", 8)
	if err := errors.Join(p.Err(), s.Err(), c.Err(), d.Err()); err != nil {
		return nil, err
	}
	types, err := k.Module("nfs")
	if err != nil {
		types = k.Types() // it is part of the image
	}
	mapped, err := types.Constant("PG_MAPPED")
	if err == nil && mapped > 63 {
		err = fmt.Errorf("PG_MAPPED is bit %d", mapped)
	}
	n.mapped = uint(mapped)
	return n, err
}

func (c *Cache) nfsServer(s *Superblock) (string, error) {
	l, err := c.nfs()
	if err != nil {
		return "", fmt.Errorf("read nfs: %w", err)
	}
	b, err := c.k.Bytes(s.info, l.serverSize)
	if err != nil {
		return "", fmt.Errorf("read nfs: %s: %w", s.ID, err)
	}
	if owner := l.super.Pointer(b); owner != s.Addr {
		return "", fmt.Errorf("read nfs: %s: its structure belongs to superblock at %v", s.ID, owner)
	}
	name, err := c.k.Pointer(l.host.In(l.client.Pointer(b)))
	if err != nil {
		return "", fmt.Errorf("read nfs: server of %s: %w", s.ID, err)
	}
	server, err := c.k.CString(name, maxServer)
	if err != nil {
		return "", fmt.Errorf("read nfs: server of %s: %w", s.ID, err)
	}
	return server, nil
}

// exportOf returns the path on the server, without a leading slash, of a dentry that is the top of a
// mount: the client keeps the name that was mounted, SERVER:/PATH, in its d_fsdata (fs/nfs/getroot.c,
// nfs_get_root). The superblock's own top is not such a dentry.
func (c *Cache) exportOf(dentry addr.Virt) (string, error) {
	l, err := c.nfs()
	if err != nil {
		return "", err
	}
	at, err := c.k.Pointer(l.fsdata.In(dentry))
	if err != nil {
		return "", err
	}
	name, err := c.k.CString(at, maxPath)
	if err != nil {
		return "", err
	}
	// The name of a server has no slash, and an address of IPv6 is in brackets.
	if i := strings.Index(name, ":/"); i > 0 && !strings.Contains(name[:i], "/") {
		return strings.Trim(name[i+1:], "/"), nil
	}
	return "", fmt.Errorf("%q is no name of an export", name)
}

// unsent yields the bytes of an NFS file that its server does not have, or may lose: those that were not
// sent, and those that were sent and not committed there. No mark of the tree distinguishes the latter
// from saved ones, so it visits all pages: the requests of a page say which of its bytes these are.
func (c *Cache) unsent(i *Inode, last addr.Index, yield func(Piece, error) bool) {
	w := &treeWalk{c: c, array: i.tree, last: last}
	w.visit = func(at slotted, err error) bool {
		if err != nil {
			return yield(Piece{}, i.refuse(at.index, min(at.pages, uint64(last-min(at.index, last))), BadTree, err))
		}
		return c.requested(i, at, yield)
	}
	switch head := entry(i.head); {
	case head == 0 || last == 0:
	case head.isNode():
		w.every(head.node(), nil, 0, 0)
	default:
		w.visit(slotted{entry: head, pages: 1}, nil)
	}
}

// requested yields the bytes that the requests of one entry of the tree cover.
func (c *Cache) requested(i *Inode, at slotted, yield func(Piece, error) bool) bool {
	if at.isValue() && i.Flags&FlagDAX == 0 {
		return true // the shadow of a page that was evicted, hence saved
	}
	p, err := c.sound(i, at)
	if err != nil {
		return yield(Piece{}, err)
	}
	yield = p.intact(i, yield)
	l := &c.layout.page
	switch {
	case p.has(l.hasPrivate):
	case !p.has(l.dirty) && !p.writing:
		return true
	case p.has(l.uptodate):
		return yield(whole(p, at), nil)
	default:
		return yield(Piece{}, i.refuse(at.index, at.pages, NotUptodate, nil))
	}
	spans, err := c.requests(p)
	if err != nil {
		return yield(Piece{}, i.refuse(at.index, p.pages, BadBuffers, err))
	}
	for _, s := range spans {
		if !yield(p.piece(s.Off, s.End), nil) {
			return false
		}
	}
	return true
}

// sound reads the page of an entry of a tree, and checks that it belongs to the file. Errors are *Refusal.
func (c *Cache) sound(i *Inode, at slotted) (*pageState, error) {
	if at.isValue() || at.isInternal() || at.entry == 0 {
		return nil, i.refuse(at.index, at.pages, BadSlot, fmt.Errorf("slot holds %#x", uint64(at.entry)))
	}
	p, err := c.page(addr.Virt(at.entry))
	if err != nil {
		return nil, i.refuse(at.index, at.pages, Unreadable, err)
	}
	return p, c.belongs(i, p, at)
}

// maxRequests bounds the requests of one folio.
const maxRequests = 1 << 12

// requests returns the bytes of a folio that its requests cover, as offsets in the folio, ascending and
// without overlap. The requests form a ring: the first one, and those that it was split into while it
// was being sent (fs/nfs/pagelist.c, nfs_page_group_init).
func (c *Cache) requests(p *pageState) ([]addr.Span, error) {
	l, err := c.nfs()
	if err != nil {
		return nil, err
	}
	size := p.size()
	var out []addr.Span
	for at, n := p.private, 0; n == 0 || at != p.private; n++ {
		b, err := c.k.Bytes(at, l.pageSize)
		if err != nil {
			return nil, fmt.Errorf("read request: %w", err)
		}
		from := int64(l.start.Uint(b))
		span := addr.Span{Off: from, End: from + int64(l.length.Uint(b))}
		index := addr.Index(l.index.Uint(b))
		switch {
		case n == maxRequests:
			return nil, fmt.Errorf("more than %d requests", maxRequests)
		case c.frameOf(l.page.Pointer(b)) != p.frame || index < p.index || uint64(index-p.index) >= p.pages:
			return nil, fmt.Errorf("request at %v is about another page", at)
		case l.head.Pointer(b) != p.private || n == 0 && l.flags.Uint(b)>>l.mapped&1 == 0:
			return nil, fmt.Errorf("request at %v is not of this page's ring", at)
		case span.Len() == 0 || span.End > size:
			return nil, fmt.Errorf("request at %v is about bytes %v of a page of %d", at, span, size)
		}
		out, at = append(out, span), l.next.Pointer(b)
	}
	return joined(out), nil
}

// joined sorts spans, and joins those that touch.
func joined(in []addr.Span) []addr.Span {
	slices.SortFunc(in, func(a, b addr.Span) int { return cmp.Compare(a.Off, b.Off) })
	out := in[:0]
	for _, s := range in {
		if n := len(out); n > 0 && s.Off <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, s.End)
		} else {
			out = append(out, s)
		}
	}
	return out
}
