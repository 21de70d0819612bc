package audit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Name is a name of a file in a directory.
type Name struct {
	Dir  addr.Ino
	Name string
}

// Names returns the names of an inode that the dead kernel's programs saw: those in the dentry
// cache (struct dentry). The names that an operation in flight changes are among them, as they
// were before the operation: the kernel changes the dentries when the file system has done its
// part (fs/namei.c, vfs_rename, vfs_unlink; fs/ext4/namei.c, __ext4_link).
type Names func(addr.Ino) ([]Name, error)

// place is a directory entry and where it is.
type place struct {
	dir    addr.Ino
	block  addr.Block
	offset int // in the block, in bytes
	ino    addr.Ino
	name   string
}

func (p place) is(n Name) bool { return p.dir == n.Dir && p.name == n.Name }

// balance returns how many more entries an inode has than its links call for; it is negative
// if entries are missing. It is 0 where this is not known. It does not hold for an inode that has turned.
func (i *inode) balance(delta, gained int) int {
	switch {
	case i.new == nil:
		return 0
	case i.isDir():
		return gained - (i.new.names() - i.old.names())
	case i.old != nil:
		return int(i.old.Links) + delta - int(i.new.Links)
	}
	return delta - int(i.new.Links)
}

// unbalanced are the inodes with one name too many, or too few, in order.
type unbalanced struct{ over, under []addr.Ino }

func (m *mender) unbalanced() (*unbalanced, error) {
	delta, names := m.countNames()
	out := &unbalanced{}
	for _, n := range sorted(delta) {
		if n < m.super.FirstInode {
			continue
		}
		if err := m.touch(n); err != nil {
			return nil, err
		}
		by, err := m.balance(m.inodes[n], delta[n], names[n])
		if err != nil {
			return nil, err
		}
		switch {
		case by > 1:
			return nil, fmt.Errorf("inode %d has %d names too many: not understood", n, by)
		case by == 1:
			out.over = append(out.over, n)
		case by < 0:
			out.under = append(out.under, n)
		}
	}
	return out, nil
}

// balance is inode.balance for any inode. One that was freed, and made again as another kind of file, has only the names of
// its new kind, all of which are new.
func (m *mender) balance(i *inode, delta int, names kinds) (int, error) {
	if i.turned() {
		if m.super.Incompat&ext4.IncompatFiletype == 0 {
			return 0, foreignf("inode %d becomes another kind of file: not understood", i.number)
		}
		return names[fileKinds[i.new.Mode>>12]] - i.new.names(), nil
	}
	return i.balance(delta, names.sum()), nil
}

// mendRenames takes back what operations in flight did to names, where that leaves one name
// too many, or would leave a file without its name. The table has the states between the
// changes of two blocks (fs/ext4/namei.c, ext4_rename, ext4_cross_rename, __ext4_link): F is
// renamed from A to B, where T may be, as programs saw these names. Columns A and B say which
// inode has that name; columns F and T, how many names that inode has, L being its links.
//
//	A  B  F    T    what                        then
//	F  F  L+1       rename, link                B goes
//	F  F  L+1  L-1  rename over T, exchange     B is T again
//	-  F  L    L-1  rename over T               T loses a link: mendCount
//	-  F  L    L    rename: .. of a directory   mendParents, and links of directories
//	T  F  L    L    exchange                    likewise
//	W  -  L-1       rename with whiteout W      A is F again, and W, without a name, is free
//	W  F  L    L-1  the same over T             T loses a link
//
// An inode that has lost a name for another reason was being unlinked; one that was being
// created had no name yet. Without Memory.Names nothing is done.
func (m *mender) mendRenames() error {
	if m.memory.Names == nil {
		return nil
	}
	u, err := m.unbalanced()
	if err != nil {
		return err
	}
	for _, n := range u.over {
		if err := m.takeBack(n, u.under); err != nil {
			return err
		}
	}
	if m.dirty {
		return nil
	}
	for _, n := range u.under {
		if err := m.lost(n); err != nil {
			return err
		}
	}
	return nil
}

// takeBack takes from inode n the name that programs had not seen. If an inode that lacks a
// name had it before, that inode gets it again.
func (m *mender) takeBack(n addr.Ino, under []addr.Ino) error {
	seen, err := m.memory.Names(n)
	if err != nil {
		return err
	}
	var fresh []place
	for _, p := range m.places[n] {
		if !p.among(seen) {
			fresh = append(fresh, p)
		}
	}
	if len(fresh) != 1 {
		return fmt.Errorf("inode %d has one name too many, but %d of its names are new instead of one: not understood", n, len(fresh))
	}
	if err := m.operation(); err != nil {
		return err
	}
	p := fresh[0]
	for _, t := range under {
		had, err := m.memory.Names(t)
		if err != nil {
			return err
		}
		if p.among(had) {
			m.tell("name %q in directory %d: inode %d again, and not %d: a renaming is taken back", p.name, p.dir, t, n)
			return m.setEntry(p, t)
		}
	}
	m.tell("name %q in directory %d: not inode %d yet: a renaming or link is taken back", p.name, p.dir, n)
	return m.setEntry(p, 0)
}

func (p place) among(names []Name) bool { return slices.ContainsFunc(names, p.is) }

// lost judges an inode that lacks a name. It must have been in creation or being unlinked, or be
// the target of a rename that is otherwise done. If a whiteout has its name, it gets that again.
func (m *mender) lost(n addr.Ino) error {
	i := m.inodes[n]
	seen, err := m.memory.Names(n)
	if err != nil {
		return err
	}
	if len(seen) == 0 && !i.made() {
		return fmt.Errorf("inode %d lacks a name, and has no dentry in memory: not understood", n)
	}
	for _, name := range seen {
		p, err := m.find(name)
		if err != nil {
			return err
		}
		if p == nil || p.ino == n {
			continue
		}
		whiteout, err := m.whiteout(p.ino)
		if err != nil {
			return err
		}
		if whiteout {
			m.tell("name %q in directory %d: inode %d again: a whiteout is taken back", p.name, p.dir, n)
			return m.setEntry(*p, n)
		}
		if err := m.moved(*p); err != nil {
			return fmt.Errorf("inode %d lacks a name: %w", n, err)
		}
	}
	return nil
}

// whiteout reports whether an inode is a whiteout, which a rename may leave, that no program
// has seen yet (include/linux/fs.h, WHITEOUT_MODE, WHITEOUT_DEV).
func (m *mender) whiteout(n addr.Ino) (bool, error) {
	i, err := m.new.load(n)
	if err != nil {
		return false, err
	}
	if i.Mode != 0x2000 || len(bytes.Trim(i.Block[:], "\x00")) > 0 {
		return false, nil
	}
	seen, err := m.memory.Names(n)
	return len(seen) == 0, err
}

// moved checks that the inode of an entry was renamed to that name: that programs had seen the
// inode under another name, which is gone.
func (m *mender) moved(to place) error {
	seen, err := m.memory.Names(to.ino)
	if err != nil {
		return err
	}
	for _, name := range seen {
		if to.is(name) {
			continue
		}
		p, err := m.find(name)
		if err != nil {
			return err
		}
		if p == nil || p.ino != to.ino {
			return nil
		}
	}
	return fmt.Errorf("inode %d took over that name, but was not renamed to it: not understood", to.ino)
}

// find returns the entry of a name; nil if the directory does not have it.
func (m *mender) find(n Name) (*place, error) {
	tree, err := m.new.tree(n.Dir, nil)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", n.Dir, err)
	}
	if !tree.inode.IsDir() {
		return nil, fmt.Errorf("inode %d is no directory", n.Dir)
	}
	for _, x := range tree.out.extents {
		for at := x.start; at < x.start+addr.Block(x.length); at++ {
			b, err := m.new.block(at)
			if err != nil {
				return nil, err
			}
			list, err := m.new.lenient(b)
			if err != nil {
				return nil, fmt.Errorf("directory %d: %w", n.Dir, err)
			}
			for _, e := range list {
				if string(e.name) == n.Name {
					return &place{n.Dir, at, e.offset, e.ino, n.Name}, nil
				}
			}
		}
	}
	return nil, nil
}

// setEntry makes an entry lead to inode n; 0 means to none.
func (m *mender) setEntry(p place, n addr.Ino) error {
	kind := byte(0)
	if n != 0 && m.super.Incompat&ext4.IncompatFiletype != 0 {
		i, err := m.new.load(n)
		if err != nil {
			return err
		}
		kind = fileKinds[i.Mode>>12]
	}
	dir, err := m.new.load(p.dir)
	if err != nil {
		return err
	}
	b, err := m.edit(p.block)
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b[p.offset:], uint32(n))
	b[p.offset+7] = kind
	m.sealLeaf(dir, b)
	return nil
}

// sealLeaf sets the checksum of a block of a directory.
func (m *mender) sealLeaf(dir *ext4.Inode, b []byte) {
	if m.super.Checksummed() {
		end := len(b) - entryTail
		binary.LittleEndian.PutUint32(b[end+8:], ext4.CRC32C(dir.Seed, b[:end]))
	}
}

// mendParents sets the ".." of directories that were moved to the directory that they are in
// now: a rename changes it last (fs/ext4/namei.c, ext4_rename_dir_finish).
func (m *mender) mendParents() error {
	in, gained := make(map[addr.Ino][]addr.Ino), make(map[addr.Ino]int)
	for e, count := range m.edges {
		if e.role == child {
			gained[e.ino] += count
			for range count {
				in[e.ino] = append(in[e.ino], e.dir)
			}
		}
	}
	for _, n := range sorted(in) {
		i := m.inodes[n]
		if len(in[n]) != 1 || i == nil || !i.new.live() || i.turned() || i.balance(0, gained[n]) != 0 {
			continue
		}
		up, err := m.parent(n)
		if err != nil {
			return err
		}
		if up == in[n][0] {
			continue
		}
		if err := m.setParent(i, in[n][0]); err != nil {
			return err
		}
	}
	return nil
}

// setParent sets the ".." of a directory. The first block of the directory is a leaf, or the
// root of its index.
func (m *mender) setParent(i *inode, up addr.Ino) error {
	blocks := m.directoryBlocks(i.new)
	if len(blocks) == 0 || blocks[0] == 0 {
		return fmt.Errorf("directory %d has no first block", i.number)
	}
	b, err := m.edit(blocks[0])
	if err != nil {
		return err
	}
	m.tell("directory %d: its .. is %d", i.number, up)
	binary.LittleEndian.PutUint32(b[12:], uint32(up)) // behind "." of 12 bytes
	if i.new.Flags&ext4.InodeIndex == 0 {
		m.sealLeaf(i.new.Inode, b)
		return nil
	}
	return m.sealRoot(i, b)
}

// sealRoot sets the checksum of the root of an index (ext4_dx_csum).
func (m *mender) sealRoot(i *inode, b []byte) error {
	if !m.super.Checksummed() {
		return nil
	}
	const at = indexInfo + indexInfoSize
	limit, count := int(binary.LittleEndian.Uint16(b[at:])), int(binary.LittleEndian.Uint16(b[at+2:]))
	if count > limit || at+limit*indexEntry+indexTail > len(b) {
		return fmt.Errorf("directory %d has %d entries in its index, with room for %d", i.number, count, limit)
	}
	tail := b[at+limit*indexEntry:][:indexTail]
	sum := ext4.CRC32C(ext4.CRC32C(i.new.Seed, b[:at+count*indexEntry]), tail[:4])
	binary.LittleEndian.PutUint32(tail[4:], ext4.CRC32C(sum, []byte{0, 0, 0, 0}))
	return nil
}
