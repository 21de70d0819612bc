package offline

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/mounts"
)

// mountAt finds what is mounted on a directory.
func mountAt(dir string) (mounts.Mount, error) {
	var m mounts.Mount
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return m, fmt.Errorf("find mount: %w", err)
	}
	for at := range mounts.Here() {
		if at.Dir == abs { // the last mount there is on top of the others
			m = at
		}
	}
	switch {
	case m.Type == "":
		return m, fmt.Errorf("find mount: nothing is mounted on %s", abs)
	case m.Root != "/":
		return m, fmt.Errorf("find mount: on %s is only %s of its file system: mount all of it (btrfs: -o subvolid=5)", abs, m.Root)
	case m.Has("ro"):
		return m, fmt.Errorf("find mount: %s is mounted read-only", abs)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(abs, &st); err != nil {
		return m, fmt.Errorf("find mount: %w", err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return m, fmt.Errorf("find mount: %s is read-only: the file system may have had an error", abs)
	}
	return m, nil
}
