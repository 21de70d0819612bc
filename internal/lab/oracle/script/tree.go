package script

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// Types of files in Node.Mode (include/uapi/linux/stat.h).
const (
	TypeMask = 0o170000
	TypeDir  = 0o040000
	TypeFile = 0o100000
	TypeLink = 0o120000
)

// Node is a file, a directory or a symbolic link, and what it must be.
type Node struct {
	ID       int
	Mode     uint32 // type and permissions
	UID, GID uint32
	Size     int64
	Content  *Content // of a file; nil if the script keeps none
	Xattrs   map[string]string
	NoDump   bool // an inode flag (Stat)
	Target   string
	Children map[string]*Node
	Names    []Name // where it is; none for a deleted file that is held open

	// As the guest reported them.
	Ino  uint64
	Sec  int64
	Nsec uint32

	// Numbers of operations: the last that changed it, and the last that made it durable.
	// -1 means none.
	Changed, Synced int

	subdirs int
	held    int
	cap     bool // certain to have Capability
}

// Name is one place of a node.
type Name struct {
	Dir  *Node
	Base string
}

// Dir reports whether it is a directory.
func (n *Node) Dir() bool { return n.Mode&TypeMask == TypeDir }

// File reports whether it is a regular file.
func (n *Node) File() bool { return n.Mode&TypeMask == TypeFile }

// Path returns a path of the node from the top of its thread's tree, which is "".
func (n *Node) Path() string {
	if len(n.Names) == 0 {
		return ""
	}
	return path.Join(n.Names[0].Dir.Path(), n.Names[0].Base)
}

// Nlink returns the number of links as in stat(2).
func (n *Node) Nlink() uint32 {
	if n.Dir() {
		return uint32(2 + n.subdirs)
	}
	return uint32(len(n.Names))
}

// Durable reports whether nothing happened to it since it was synced.
func (n *Node) Durable() bool { return n.Synced >= 0 && n.Synced >= n.Changed }

// Walk calls visit for the node and all below it, by path.
func (n *Node) Walk(at string, visit func(at string, n *Node)) {
	visit(at, n)
	for _, base := range slices.Sorted(maps.Keys(n.Children)) {
		n.Children[base].Walk(path.Join(at, base), visit)
	}
}

func (s *Script) newNode(mode uint32) *Node {
	n := &Node{ID: s.nodes, Mode: mode, Changed: -1, Synced: -1}
	s.nodes++
	switch mode & TypeMask {
	case TypeDir:
		n.Children = make(map[string]*Node)
	case TypeFile:
		if s.keep {
			n.Content = &Content{}
		}
	}
	return n
}

// At finds the node of a reference.
func (s *Script) At(r Ref) (*Node, error) {
	if r.Slot != NoSlot {
		if r.Slot < 0 || r.Slot >= Slots || s.slots[r.Slot] == nil {
			return nil, fmt.Errorf("slot %d: %w", r.Slot, fs.ErrNotExist)
		}
		return s.slots[r.Slot], nil
	}
	n := s.Top
	for part := range strings.SplitSeq(r.Path, "/") {
		if part == "" {
			continue
		}
		if n = n.Children[part]; n == nil {
			return nil, fmt.Errorf("%s: %w", r.Path, fs.ErrNotExist)
		}
	}
	return n, nil
}

// attach gives a node a name, in place of the node that has it.
func (s *Script) attach(n *Node, at string) error {
	dir, base, err := s.place(at)
	if err != nil {
		return err
	}
	if old := dir.Children[base]; old != nil {
		s.detach(old, dir, base)
	}
	s.list(n)
	dir.Children[base] = n
	n.Names = append(n.Names, Name{dir, base})
	if n.Dir() {
		dir.subdirs++
	}
	dir.Changed = s.number
	return nil
}

// place returns the directory that a path is in, and its name there.
func (s *Script) place(at string) (*Node, string, error) {
	dir, err := s.At(Ref{strings.TrimSuffix(path.Dir(at), "."), NoSlot})
	return dir, path.Base(at), err
}

// detach takes a name away from a node.
func (s *Script) detach(n, dir *Node, base string) {
	delete(dir.Children, base)
	n.Names = slices.DeleteFunc(n.Names, func(at Name) bool { return at.Dir == dir && at.Base == base })
	n.Changed, dir.Changed = s.number, s.number
	if n.Dir() {
		dir.subdirs--
	}
	if len(n.Names) == 0 {
		s.unlist(n)
	}
}

// list adds a node to those that operations are done to; unlist removes it.
func (s *Script) list(n *Node) {
	all := s.listOf(n)
	if !slices.Contains(*all, n) {
		*all = append(*all, n)
	}
}

func (s *Script) unlist(n *Node) {
	all := s.listOf(n)
	if i := slices.Index(*all, n); i >= 0 {
		*all = slices.Delete(*all, i, i+1)
	}
}

func (s *Script) listOf(n *Node) *[]*Node {
	switch n.Mode & TypeMask {
	case TypeDir:
		return &s.dirs
	case TypeFile:
		return &s.files
	}
	return &s.links
}
