package pagecache

import (
	"errors"
	"fmt"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Bounds of a path (include/uapi/linux/limits.h).
const (
	maxPath      = 4096
	maxComponent = 255
	maxDepth     = maxPath / 2
)

type dentryLayout struct {
	size                                      int
	parent, name, length, inode, super, alias kernel.Field
	unhashed                                  kernel.Field // d_hash.pprev: zero if the name was removed
	// The list of a directory's names, and the link in it: a list_head, and since 6.8 an hlist.
	children, sibling kernel.Field
	chain             bool // it is an hlist
}

func (d *dentryLayout) look(t *kernel.Types) error {
	l := t.Layout("dentry")
	d.size = l.Size
	d.parent = l.Field("d_parent", 8)
	d.name = l.First([]string{"d_name.name", "__d_name.name"}, 8)
	d.length = l.First([]string{"d_name.len", "__d_name.len"}, 4)
	d.inode = l.Field("d_inode", 8)
	d.super = l.Field("d_sb", 8)
	d.unhashed = l.Field("d_hash.pprev", 8)
	// In a union called d_u up to 6.12, in an anonymous one later (seen on 7.2).
	d.alias = l.First([]string{"d_u.d_alias", "d_alias"}, 16)
	if d.children = l.Optional("d_subdirs", 16); d.children.Present() {
		d.sibling = l.Optional("d_child", 16)
	} else {
		d.children, d.sibling, d.chain = l.Optional("d_children", 8), l.Optional("d_sib", 16), true
	}
	return l.Err()
}

// ErrNoPath says that the kernel has no name for an inode in memory: it was
// opened by a file handle, or all its names were dropped from memory or deleted.
var ErrNoPath = errors.New("no name in memory")

// Paths finds the names of a file system's inodes and remembers directories. It
// is not safe for concurrent use.
type Paths struct {
	c    *Cache
	s    *Superblock
	dirs map[addr.Virt]string // dentries of directories
	used int                  // bytes of names in dirs
}

// maxRemembered bounds the names of directories that are remembered, in bytes.
const maxRemembered = 64 << 20

// Paths returns a finder of names for the inodes of a file system.
func (c *Cache) Paths(s *Superblock) *Paths {
	p := c.within(s)
	if s.smb() {
		delete(p.dirs, s.root) // it has a name on the server: that of the share
	}
	return p
}

// within is Paths, but its paths begin at the top of the file system even if that is of a server.
func (c *Cache) within(s *Superblock) *Paths {
	return &Paths{c: c, s: s, dirs: map[addr.Virt]string{s.root: ""}}
}

// Of returns a path of the inode, from the top of its file system, or of its server, without a
// leading slash. Of several names, one that is not deleted is taken.
func (p *Paths) Of(i *Inode) (string, error) {
	l := &p.c.layout.dentry
	var errs []error
	for at, err := range p.c.hlist(p.c.layout.inode.dentries.In(i.Addr)) {
		if err != nil {
			errs = append(errs, err)
			break
		}
		dentry := at - addr.Virt(l.alias.Off)
		d, err := p.read(dentry)
		switch {
		case err != nil:
		case d.inode != i.Addr:
			err = fmt.Errorf("dentry at %v is of another inode", dentry)
		case d.deleted && dentry != p.s.root:
			err = ErrNoPath
		default:
			var path string
			if path, err = p.path(dentry); err == nil {
				return path, nil
			}
		}
		errs = append(errs, err)
		if len(errs) > maxDepth {
			break
		}
	}
	return "", fmt.Errorf("find path of inode %d: %w", i.Ino, errors.Join(append(errs, ErrNoPath)...))
}

// maxNames bounds how many names of one inode are looked for.
const maxNames = 1 << 12

// All returns all paths of an inode that are in memory, from the top of its file
// system, the newest first. There may be others on the disk.
func (p *Paths) All(i *Inode) []string { return p.aliases(i, false) }

// Former returns paths that an inode had until it was deleted, or some of its names were, although it was still open. What has
// such a path by now may be another inode.
func (p *Paths) Former(i *Inode) []string { return p.aliases(i, true) }

func (p *Paths) aliases(i *Inode, deleted bool) []string {
	l := &p.c.layout.dentry
	var out []string
	n := 0
	for at, err := range p.c.hlist(p.c.layout.inode.dentries.In(i.Addr)) {
		if n++; err != nil || n > maxNames {
			break
		}
		dentry := at - addr.Virt(l.alias.Off)
		d, err := p.read(dentry)
		if err != nil || d.inode != i.Addr || d.deleted != deleted || deleted && d.parent == dentry {
			continue
		}
		if path, err := p.path(dentry); err == nil {
			out = append(out, path)
		}
	}
	return out
}

// Name is one name of an inode, in a directory.
type Name struct {
	Dir  addr.Ino
	Name string
}

// Names returns all names of an inode that are in memory and were not removed. An error
// means that one of them cannot be read.
func (p *Paths) Names(i *Inode) ([]Name, error) {
	var out []Name
	for at, err := range p.c.hlist(p.c.layout.inode.dentries.In(i.Addr)) {
		var name Name
		var there bool
		if err == nil {
			name, there, err = p.name(i, at-addr.Virt(p.c.layout.dentry.alias.Off))
		}
		if err != nil {
			return nil, fmt.Errorf("find names of inode %d: %w", i.Ino, err)
		}
		if there {
			out = append(out, name)
		}
	}
	return out, nil
}

// name returns the name that a dentry gives an inode; false if the name was removed.
func (p *Paths) name(i *Inode, dentry addr.Virt) (Name, bool, error) {
	d, err := p.read(dentry)
	switch {
	case err != nil:
		return Name{}, false, err
	case d.inode != i.Addr:
		return Name{}, false, fmt.Errorf("dentry at %v is of another inode", dentry)
	case d.deleted || d.parent == dentry:
		return Name{}, false, nil
	}
	up, err := p.read(d.parent)
	if err != nil {
		return Name{}, false, err
	}
	dir, err := p.c.inode(up.inode, p.s)
	if err != nil {
		return Name{}, false, err
	}
	return Name{dir.Ino, d.name}, true, nil
}

// Absent returns names that nothing in a directory had, as the kernel knew: those of its negative dentries. A name that was removed is
// one of them, unless its file was still open, or memory was short.
func (p *Paths) Absent(dir *Inode) []string {
	l := &p.c.layout.dentry
	if !l.children.Present() || !l.sibling.Present() {
		return nil
	}
	var out []string
	for at, err := range p.c.hlist(p.c.layout.inode.dentries.In(dir.Addr)) { // it has one
		own := at - addr.Virt(l.alias.Off)
		if err != nil {
			break
		}
		if d, err := p.read(own); err != nil || d.inode != dir.Addr || d.deleted && own != p.s.root {
			continue
		}
		list := p.c.List
		if l.chain {
			list = p.c.hlist
		}
		for at, err := range list(l.children.In(own)) {
			if err != nil || len(out) == maxAbsent {
				break
			}
			at -= addr.Virt(l.sibling.Off)
			if inode, err := p.c.k.Pointer(l.inode.In(at)); err != nil || inode != 0 {
				continue // as most are
			}
			if d, err := p.read(at); err == nil && d.parent == own && d.inode == 0 && !d.deleted {
				out = append(out, d.name)
			}
		}
	}
	return out
}

// maxAbsent bounds what Absent returns.
const maxAbsent = 10_000

// path joins the names from the top down to a dentry.
func (p *Paths) path(dentry addr.Virt) (string, error) {
	var names []string
	var below []addr.Virt // the dentries of names
	at, total := dentry, 0
	top, known := p.dirs[at]
	for !known {
		d, err := p.read(at)
		if err != nil {
			return "", err
		}
		if d.parent == at {
			if top, err = p.topOf(at); err != nil {
				return "", err
			}
			break
		}
		names, below = append(names, d.name), append(below, at)
		total += len(d.name) + 1
		if len(names) > maxDepth || total > maxPath {
			return "", fmt.Errorf("path of dentry at %v is longer than %d bytes", dentry, maxPath)
		}
		at = d.parent
		top, known = p.dirs[at]
	}
	if len(top)+total > maxPath {
		return "", fmt.Errorf("path of dentry at %v is longer than %d bytes", dentry, maxPath)
	}
	for i := len(names) - 1; i >= 0; i-- {
		top = strings.TrimPrefix(top+"/"+names[i], "/")
		if i > 0 && p.used < maxRemembered {
			p.dirs[below[i]] = top
			p.used += len(top)
		}
	}
	return top, nil
}

// topOf returns the path that a dentry without a parent stands for. An NFS file system has such a dentry
// for each of its mounts besides its own top, an SMB file system only its own top.
func (p *Paths) topOf(at addr.Virt) (string, error) {
	if !p.s.Remote() || p.s.smb() && at != p.s.root {
		return "", fmt.Errorf("%w: not connected to the top directory", ErrNoPath)
	}
	top, err := p.c.onServer(p.s, at)
	if err != nil {
		return "", fmt.Errorf("%w: not connected to what is mounted: %w", ErrNoPath, err)
	}
	if len(top) < maxPath && p.used < maxRemembered {
		p.dirs[at] = top
		p.used += len(top)
	}
	return top, nil
}

// dentry is a name.
type dentry struct {
	parent, inode addr.Virt
	name          string
	deleted       bool
}

func (p *Paths) read(at addr.Virt) (dentry, error) {
	l := &p.c.layout.dentry
	b, err := p.c.k.Bytes(at, l.size)
	if err != nil {
		return dentry{}, fmt.Errorf("read dentry: %w", err)
	}
	if l.super.Pointer(b) != p.s.Addr {
		return dentry{}, fmt.Errorf("dentry at %v is of another file system", at)
	}
	length := l.length.Uint(b)
	if length == 0 || length > maxComponent {
		return dentry{}, fmt.Errorf("dentry at %v has a name of %d bytes", at, length)
	}
	name, err := p.c.k.Bytes(l.name.Pointer(b), int(length))
	if err != nil {
		return dentry{}, fmt.Errorf("read name: %w", err)
	}
	d := dentry{
		parent:  l.parent.Pointer(b),
		inode:   l.inode.Pointer(b),
		name:    string(name),
		deleted: l.unhashed.Uint(b) == 0,
	}
	// The top directory's own name is "/", and is never used.
	if at != p.s.root && d.parent != at && (strings.ContainsAny(d.name, "/\x00") || d.name == "." || d.name == "..") {
		return dentry{}, fmt.Errorf("dentry at %v has the name %q", at, d.name)
	}
	return d, nil
}
