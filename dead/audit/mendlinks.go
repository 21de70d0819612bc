package audit

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// mendLinks makes the links of inodes agree with the entries for them.
func (m *mender) mendLinks() error {
	m.checkDirectories()
	if m.failed != nil || len(m.verdict.Reasons) > 0 {
		return nil
	}
	for _, mend := range []func() error{m.mendRenames, m.mendParents} {
		if err := mend(); err != nil || m.dirty {
			return err
		}
	}
	delta, names := m.countNames()
	for _, n := range sorted(delta) {
		if n < m.super.FirstInode && n != rootInode {
			continue
		}
		if err := m.touch(n); err != nil {
			return err
		}
		i := m.inodes[n]
		if i.new == nil || i.old.live() && (i.old.Links == 1 || i.new.live() && i.new.Links == 1) {
			continue // free, or a directory whose links are no longer counted
		}
		gained := 0
		for _, count := range names[n] {
			gained += count
		}
		if err := m.mendCount(i, delta[n], gained); err != nil {
			return err
		}
	}
	return nil
}

// mendCount mends the links of an inode that has delta more entries than before, of which gained
// are names. A rename adds the new name before it removes the old one, so that an inode that lost
// a name has lost it for good; and each operation removes one.
func (m *mender) mendCount(i *inode, delta, gained int) error {
	was, now := 0, int(i.new.Links)
	if i.old != nil {
		was = int(i.old.Links)
	}
	want := was + delta
	if want == now {
		return nil
	}
	if gained < 0 || want == 0 {
		if err := m.operation(); err != nil {
			return err
		}
	}
	switch {
	case i.number == rootInode:
		if i.new.IsDir() && want >= 2 {
			return m.setLinks(i.number, want)
		}
	case i.new.IsDir() && i.made() && gained == -i.old.names():
		m.tell("inode %d: a directory that was being made, without a name", i.number)
		return m.free(i.number)
	case i.new.IsDir() && !i.made() && gained == -1 && want == 1 && now == 2:
		if err := m.empty(i.number); err != nil {
			return err
		}
		m.tell("inode %d: a directory that was being removed, without a name", i.number)
		return m.free(i.number)
	case i.new.IsDir() && want >= 2:
		return m.setLinks(i.number, want)
	case i.new.IsDir():
	case want == 0 && now == 1:
		m.tell("inode %d: its one name was not there yet, or any more", i.number)
		return m.free(i.number)
	case want > 0 && want == now-1 && !i.made():
		return m.setLinks(i.number, want)
	}
	return fmt.Errorf("inode %d has %d links and gets %+d names, but had %d links: not understood", i.number, now, delta, was)
}

// operation uses up one of the operations that were in flight.
func (m *mender) operation() error {
	if m.operations--; m.operations < 0 {
		return errors.New("more names are missing than operations were in flight")
	}
	return nil
}

// empty checks that a directory has nothing but "." and "..".
func (m *mender) empty(n addr.Ino) error {
	tree, err := m.new.tree(n, nil)
	if err != nil {
		return fmt.Errorf("directory %d: %w", n, err)
	}
	names := 0
	for _, r := range tree.out.runs() {
		for at := r.Physical; at < r.Physical+addr.Block(r.Length); at++ {
			b, err := m.new.block(at)
			if err != nil {
				return err
			}
			list, err := m.new.lenient(b)
			if err != nil {
				return fmt.Errorf("directory %d: %w", n, err)
			}
			names += len(list)
		}
	}
	if names != 2 {
		return fmt.Errorf("directory %d has no name, but %d entries, and is not empty", n, names)
	}
	return nil
}
