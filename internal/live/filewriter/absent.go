package filewriter

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// absent takes names from what has them on the disk although nothing had them when the kernel died: it was removed since the log was
// written, or renamed. A file whose names are all known loses the name; what else has one is renamed in the same directory, since
// memory may lack the name that it had instead.
func (r *restorer) absent() {
	needed := r.needed()
	for _, l := range r.all {
		if l.kind() != unix.S_IFDIR || l.failed || !l.named() || len(l.attr.Absent) == 0 {
			continue
		}
		dir, err := r.openDir(l.path())
		if err != nil {
			continue // it was reported, or is not there
		}
		for _, name := range l.attr.Absent {
			at := filepath.Join(l.path(), string(name))
			if filepath.Base(at) != string(name) || needed[at] {
				continue
			}
			if err := r.takeAway(l, dir, string(name), at); err != nil {
				r.warn(l, fmt.Errorf("%q was not there any more: take the name away: %w", at, err))
			}
		}
		unix.Close(dir)
	}
}

// takeAway takes a name in a directory from what has it, if that was not changed after the crash.
func (r *restorer) takeAway(l *unlogged, dir int, name, at string) error {
	var there unix.Stat_t
	err := unix.Fstatat(dir, name, &there, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case l.later(&there):
		return nil
	}
	return r.giveWay(wire.ActRemoved, l, dir, name, at, &there)
}
