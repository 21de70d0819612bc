package offline

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
)

// outlasts checks that a power loss takes nothing from a directory, unless it takes the disk, too: what is in a work
// directory may be all that can finish a commit.
func outlasts(dir, disk string) error {
	gone, err := volatile(dir)
	if err != nil || !gone {
		return err
	}
	home, err := homeOf(disk)
	if err != nil {
		return fmt.Errorf("find disk: %w", err)
	}
	if home != "" {
		if gone, err := volatile(home); err == nil && gone {
			return nil
		}
	}
	return hint.New("work directory in "+dir, errors.New("it is in memory (tmpfs): after a power loss in the middle of the commit, nothing could finish "+disk),
		"Name a directory on another disk with --work.")
}

// volatile reports whether a file is gone after a power loss.
func volatile(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("find the file system of %s: %w", path, err)
	}
	return int64(st.Type) == unix.TMPFS_MAGIC || int64(st.Type) == unix.RAMFS_MAGIC, nil
}

// homeOf returns the file that has the content of a disk: an image itself, or that of a loop device. It is empty for
// other block devices.
func homeOf(disk string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return disk, nil
	}
	device := fmt.Sprintf("/sys/dev/block/%d:%d/", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, name := range []string{"loop/backing_file", "../loop/backing_file"} { // of the device, or of a partition
		if b, err := os.ReadFile(device + name); err == nil {
			return strings.TrimSuffix(string(b), "\n"), nil
		}
	}
	return "", nil
}
