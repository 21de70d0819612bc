package script

import "fmt"

// Apply brings the tree to its state after an operation, which must be the one that Next
// returned. With what the guest reported (one for each of op.Touch) it checks the tree,
// and takes over what it cannot know; an error means that the kernel did something else
// than the model.
func (s *Script) Apply(op Op, reported []Stat) error {
	if op.Number != s.number {
		return fmt.Errorf("apply operation %d: %d is next", op.Number, s.number)
	}
	if err := s.apply(op); err != nil {
		return fmt.Errorf("apply %v: %w", op, err)
	}
	s.number++
	s.retire(op)
	if reported == nil {
		return nil
	}
	for i, ref := range op.Touch {
		n, err := s.At(ref)
		if err == nil {
			err = n.take(reported[i])
		}
		if err != nil {
			return fmt.Errorf("after %v: %v: %w", op, ref, err)
		}
	}
	return nil
}

// take checks a node against what the guest reported, and completes it.
func (n *Node) take(st Stat) error {
	switch {
	case n.Ino != 0 && n.Ino != st.Ino:
		return fmt.Errorf("inode %d was %d", st.Ino, n.Ino)
	case n.Nlink() != st.Nlink && !(n.Dir() && st.Nlink == 1): // btrfs does not count the links of directories
		return fmt.Errorf("%d links, want %d", st.Nlink, n.Nlink())
	case !n.Dir() && n.Size != st.Size:
		return fmt.Errorf("%d bytes, want %d", st.Size, n.Size)
	case n.UID != st.UID || n.GID != st.GID:
		return fmt.Errorf("owner %d:%d, want %d:%d", st.UID, st.GID, n.UID, n.GID)
	case n.Mode&^0o6000 != st.Mode&^0o6000:
		return fmt.Errorf("mode %o, want %o", st.Mode, n.Mode)
	case n.Ino != 0 && n.NoDump != st.NoDump:
		return fmt.Errorf("the flag no dump is %v, want %v", st.NoDump, n.NoDump)
	case n.cap && !st.Cap:
		return fmt.Errorf("no %s", Capability)
	}
	if !st.Cap {
		delete(n.Xattrs, Capability)
	}
	n.Ino, n.Mode, n.Sec, n.Nsec, n.NoDump = st.Ino, st.Mode, st.Sec, st.Nsec, st.NoDump
	return nil
}

func (s *Script) apply(op Op) error {
	switch op.Kind {
	case Create:
		return s.attachNew(op, TypeFile|op.Mode)
	case Mkdir:
		return s.attachNew(op, TypeDir|op.Mode)
	case Symlink:
		return s.attachNew(op, TypeLink|0o777)
	case Barrier:
		s.syncAll()
		return nil
	case Close:
		n := s.slots[op.Slot]
		s.slots[op.Slot] = nil
		n.held--
		return nil
	}
	n, err := s.At(op.On)
	if err != nil {
		return err
	}
	switch op.Kind {
	case Fsync:
		n.Synced = s.number
		return nil
	case Open:
		s.slots[op.Slot] = n
		n.held++
		return nil
	}
	n.Changed = s.number
	switch op.Kind {
	case Link:
		return s.attach(n, op.To)
	case Unlink, Rmdir, Rename:
		dir, base, err := s.place(op.On.Path)
		if err != nil {
			return err
		}
		s.detach(n, dir, base)
		if op.Kind == Rename {
			return s.attach(n, op.To)
		}
	default:
		s.alter(n, op)
	}
	return nil
}

func (s *Script) attachNew(op Op, mode uint32) error {
	n := s.newNode(mode)
	n.Changed = s.number
	if op.Kind == Symlink {
		n.Target, n.Size = op.To, int64(len(op.To))
	}
	return s.attach(n, op.On.Path)
}

// alter applies an operation that leaves the names alone.
func (s *Script) alter(n *Node, op Op) {
	switch op.Kind {
	case Write, Store:
		if n.Content != nil {
			b := make([]byte, op.Len)
			s.Fill(b, op, 0)
			n.Content.Put(op.Off, b)
		}
		n.resize(max(n.Size, op.Off+op.Len))
	case Truncate:
		n.resize(op.Off)
	case Fallocate:
		if op.Mode&(PunchHole|ZeroRange) != 0 && n.Content != nil {
			n.Content.zero(op.Off, op.Off+op.Len)
		}
		if op.Mode&KeepSize == 0 {
			n.resize(max(n.Size, op.Off+op.Len))
		}
	case Chmod:
		n.Mode = n.Mode&TypeMask | op.Mode
	case Chown:
		n.UID, n.GID = op.UID, op.GID
	case Utimes:
		n.Sec, n.Nsec = op.Sec, uint32(op.Nsec)
	case SetXattr:
		if n.Xattrs == nil {
			n.Xattrs = make(map[string]string)
		}
		n.Xattrs[op.Name] = op.Value
	case RemoveXattr:
		delete(n.Xattrs, op.Name)
	case SetFlags:
		n.NoDump = op.Mode != 0
	}
	switch op.Kind {
	case Write, Truncate, Fallocate, Chown, Store: // some kernels remove it then
		n.cap = false
	case SetXattr, RemoveXattr:
		if op.Name == Capability {
			n.cap = op.Kind == SetXattr
		}
	}
}

func (n *Node) resize(size int64) {
	n.Size = size
	if n.Content != nil {
		n.Content.resize(size)
	}
}

// syncAll is sync(2): everything that has a name is durable.
func (s *Script) syncAll() {
	s.Top.Walk("", func(_ string, n *Node) { n.Synced = s.number })
}
