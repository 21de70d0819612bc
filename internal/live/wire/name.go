package wire

import "slices"

// NameRequest asks to undo, or to finish, operations on names that were in flight when a kernel died: a
// check has left the inodes that they were about in lost+found, or under two names.
type NameRequest struct {
	Disk  string  `json:"disk"`
	Check *Check  `json:"check"` // what it found
	Files []Named `json:"files"`
	// Dirs are the paths of directories with such an operation in flight.
	Dirs [][]byte `json:"dirs"`
}

// Named is an inode and the names that the dead kernel had for it: those from before
// the operation.
type Named struct {
	Inode      uint64   `json:"inode"`
	Generation uint32   `json:"generation"`
	Links      uint32   `json:"links"`
	Paths      [][]byte `json:"paths"` // from the top of the file system, without a leading slash
	New        bool     `json:"new"`   // it was being created, and had no name yet
	Dir        bool     `json:"dir"`   // it is a directory
}

// Has reports whether a path is one of its names.
func (n *Named) Has(at string) bool {
	return slices.ContainsFunc(n.Paths, func(p []byte) bool { return string(p) == at })
}

// NameResult tells what was done.
type NameResult struct {
	Acts     []Act     `json:"acts,omitempty"`
	Failures []Failure `json:"failures,omitempty"`
	// As in ApplyResult.
	MoreFailures int `json:"more_failures,omitempty"`
	MoreActs     int `json:"more_acts,omitempty"`
}

// Left returns the failures, except those of inodes that are gone.
func (r *NameResult) Left(failures []Failure) []Failure {
	return slices.DeleteFunc(slices.Clone(failures), func(f Failure) bool {
		return slices.ContainsFunc(r.Acts, func(a Act) bool {
			return a.Kind == ActGone && a.Inode == f.Inode && a.Generation == f.Generation
		})
	})
}
