package filewriter

import (
	"cmp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// deleteFiles deletes the files that had been deleted while they were open, if memory has the names that they had until then. A name
// that is another inode's by now stays, and so do files that were changed after the crash.
func (r *restorer) deleteFiles() {
	for id, l := range r.known {
		if l.attr.Links > 0 || l.changed {
			continue
		}
		for _, at := range l.attr.Former {
			if r.unlink(string(at), id) == nil {
				r.act(wire.ActDeleted, l, string(at), "")
			}
		}
	}
}

// deleteDirectories deletes the directories that had been deleted while they were open (a working directory, say). Those that are
// not empty, since the disk has files in them that memory does not know of, are reported.
func (r *restorer) deleteDirectories() {
	type directory struct {
		l  *unlogged
		at string
	}
	var all []directory
	for _, l := range r.all {
		if l.kind() != unix.S_IFDIR || l.attr.Links > 0 || l.attr.Committed || l.missing || l.failed {
			continue
		}
		fd, err := r.open(l)
		if err != nil {
			continue // it is gone
		}
		if at, err := r.whereIs(fd); err == nil && at != "." {
			all = append(all, directory{l, at})
		}
		unix.Close(fd)
	}
	depth := func(d directory) int { return strings.Count(d.at, "/") }
	slices.SortStableFunc(all, func(a, b directory) int { return cmp.Compare(depth(b), depth(a)) }) // the innermost first
	for _, d := range all {
		kind := wire.ActBack
		if !d.l.changed && unix.Unlinkat(r.mount, d.at, unix.AT_REMOVEDIR) == nil {
			kind = wire.ActDeleted
		}
		r.act(kind, d.l, d.at, "")
	}
}
