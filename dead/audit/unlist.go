package audit

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Unlist removes inodes from the orphan list and the orphan file. Its first two arguments
// are those of Check. It returns blocks to be changed in addition to those, or instead.
func Unlist(old io.ReaderAt, changed map[addr.Block][]byte, inodes []addr.Ino) (map[addr.Block][]byte, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return nil, fmt.Errorf("unlist orphans: %w", err)
	}
	c := newChecker(fs.Super, old, changed)
	if c.superblock(changed); c.failed != nil {
		return nil, fmt.Errorf("unlist orphans: %w", c.failed)
	}
	u := &unlister{v: c.new, gone: inodes, edited: make(map[addr.Block][]byte)}
	if err := u.list(); err != nil {
		return nil, fmt.Errorf("orphan list: %w", err)
	}
	if u.v.super.OrphanFile != 0 {
		if err := u.file(); err != nil {
			return nil, fmt.Errorf("orphan file: %w", err)
		}
	}
	return u.edited, nil
}

// unlister removes orphans from where they are noted.
type unlister struct {
	v      *view
	gone   []addr.Ino
	edited map[addr.Block][]byte
}

// block returns a block that the caller may write to.
func (u *unlister) block(at addr.Block) ([]byte, error) {
	if b, there := u.edited[at]; there {
		return b, nil
	}
	b, err := u.v.block(at)
	if err != nil {
		return nil, err
	}
	u.edited[at] = slices.Clone(b)
	return u.edited[at], nil
}

// list walks the orphan list, in which each orphan has the number of the next one as its
// time of deletion (fs/ext4/orphan.c, NEXT_ORPHAN).
func (u *unlister) list() error {
	seen := make(map[addr.Ino]source)
	var last addr.Ino // the last orphan that stays; 0 if there is none before n
	for n := u.v.super.LastOrphan; n != 0; {
		i, err := u.v.orphan(seen, n, inList)
		if err != nil {
			return err
		}
		next := addr.Ino(i.Deleted)
		if !slices.Contains(u.gone, n) {
			last, n = n, next
			continue
		}
		if err := u.next(n, 0); err != nil {
			return err
		}
		if last == 0 {
			err = u.first(next)
		} else {
			err = u.next(last, next)
		}
		if err != nil {
			return err
		}
		n = next
	}
	return nil
}

// first makes the orphan list begin with an inode.
func (u *unlister) first(n addr.Ino) error {
	at, offset := u.v.super.Location()
	b, err := u.block(at)
	if err != nil {
		return err
	}
	super, err := ext4.SetLastOrphan(b[offset:], n)
	if err != nil {
		return err
	}
	copy(b[offset:], super)
	return nil
}

// next makes an orphan point to the next one.
func (u *unlister) next(n, next addr.Ino) error {
	group, block, offset, err := u.v.super.InodeLocation(n)
	if err != nil {
		return err
	}
	g, err := u.v.group(group)
	if err != nil {
		return err
	}
	b, err := u.block(g.InodeTable + addr.Block(block))
	if err != nil {
		return err
	}
	raw := b[offset:][:u.v.super.InodeSize]
	binary.LittleEndian.PutUint32(raw[0x14:], uint32(next)) // i_dtime
	u.v.super.SealInode(n, raw)
	return nil
}

// file removes the inodes from the orphan file.
func (u *unlister) file() error {
	file, err := u.v.load(u.v.super.OrphanFile)
	if err != nil {
		return err
	}
	m, err := u.v.tree(u.v.super.OrphanFile, nil)
	if err != nil {
		return err
	}
	for _, x := range m.out.extents {
		for at := x.start; at < x.start+addr.Block(x.length); at++ {
			if err := u.fileBlock(file, at); err != nil {
				return fmt.Errorf("block %d: %w", at, err)
			}
		}
	}
	return nil
}

func (u *unlister) fileBlock(file *ext4.Inode, at addr.Block) error {
	b, err := u.v.block(at)
	if err != nil {
		return err
	}
	entries, err := u.v.super.OrphanBlock(file, at, b)
	if err != nil {
		return err
	}
	for off := 0; off+4 <= len(entries); off += 4 {
		n := addr.Ino(binary.LittleEndian.Uint32(entries[off:]))
		if n == 0 || !slices.Contains(u.gone, n) {
			continue
		}
		if b, err = u.block(at); err != nil {
			return err
		}
		clear(b[off:][:4])
		if err := u.v.super.SealOrphanBlock(file, at, b); err != nil {
			return err
		}
	}
	return nil
}
