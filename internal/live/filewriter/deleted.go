package filewriter

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// deleteFiles deletes the files that had been deleted while they were open, if memory has the names that they had until then. A name
// that is another inode's by now, or is to be another file's, stays, and so do files that were changed after the crash.
func (r *restorer) deleteFiles() {
	needed := r.needed()
	byInode := func(a, b inodeID) int { return cmp.Or(cmp.Compare(a.dev, b.dev), cmp.Compare(a.ino, b.ino)) }
	for _, id := range slices.SortedFunc(maps.Keys(r.known), byInode) {
		l := r.known[id]
		if l.attr.Links > 0 || l.changed {
			continue
		}
		for _, at := range l.attr.Former {
			if !needed[string(at)] && r.unlink(string(at), id, 0) == nil {
				r.act(wire.ActDeleted, l, string(at), "")
			}
		}
	}
}

// needed are the names that something in the plan has.
func (r *restorer) needed() map[string]bool {
	needed := make(map[string]bool)
	for _, l := range r.all {
		for _, at := range l.attr.Paths {
			needed[string(at)] = true
		}
	}
	return needed
}

// deleteDirectories deletes the directories that had been deleted while they were open (a working directory, say). Those that are
// not empty, since the disk has files in them that memory does not know of, are reported.
func (r *restorer) deleteDirectories() {
	type directory struct {
		l  *unlogged
		id inodeID
		at string
	}
	// btrfs may have given the number and generation of a directory that was never on the disk to one that was created for another.
	made := make(map[string]bool)
	for _, l := range r.all {
		if l.made != nil {
			made[string(l.made.Bytes())] = true
		}
	}
	var all []directory
	for _, l := range r.all {
		if l.kind() != unix.S_IFDIR || l.attr.Links > 0 || l.attr.Committed || l.missing || l.failed {
			continue
		}
		fh, err := handleOf(r.kind, l.file, l.attr.Root)
		if err != nil || made[string(fh.Bytes())] {
			continue
		}
		d := directory{l: l, at: fmt.Sprintf(".inode/%d-%d", l.file.Inode, l.file.Generation)}
		fd, err := r.open(l)
		if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
			continue
		}
		var st unix.Stat_t
		if err == nil {
			if unix.Fstat(fd, &st) == nil {
				d.id = idOf(&st)
			}
			if at, err := r.whereIs(fd); err == nil {
				d.at = at
			}
			unix.Close(fd)
		}
		all = append(all, d)
	}
	depth := func(d directory) int { return strings.Count(d.at, "/") }
	slices.SortStableFunc(all, func(a, b directory) int { return cmp.Compare(depth(b), depth(a)) }) // the innermost first
	for _, d := range all {
		kind := wire.ActBack
		if !d.l.changed && r.unlink(d.at, d.id, unix.AT_REMOVEDIR) == nil {
			kind = wire.ActDeleted
		}
		r.act(kind, d.l, d.at, "")
	}
}
