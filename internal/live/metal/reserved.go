package metal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Reserved keeps this machine's administrator from doing what would end an understudy:
// bringing its CPUs online, and suspending or hibernating the machine, both of which send
// its CPUs an INIT. The files in /sys for that cannot be written to until release. They
// are read-only mounts of themselves, and the error of a write says so. They are guarded
// below each of these directories, which show the same /sys; "" is the root directory.
func Reserved(roots ...string) (release func(), err error) {
	var done []string
	release = func() {
		for _, f := range done {
			_ = unix.Unmount(f, unix.MNT_DETACH) // it is there, and ours
		}
	}
	for _, root := range roots {
		for _, f := range guarded(root) {
			err := unix.Mount(f, f, "", unix.MS_BIND, "")
			if errors.Is(err, os.ErrNotExist) {
				continue // a kernel without suspend, say
			}
			if err == nil {
				done = append(done, f)
				err = unix.Mount("", f, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
			}
			if err != nil {
				release()
				return nil, fmt.Errorf("guard %s: %w", f, err)
			}
		}
	}
	return release, nil
}

// guarded returns the files to be guarded below a root directory.
func guarded(root string) []string {
	// Writing to smt/control brings all siblings online at once, and hotplug/target also
	// brings a CPU online (Documentation/ABI/testing/sysfs-devices-system-cpu).
	all := []string{root + "/sys/power/state", root + "/sys/devices/system/cpu/smt/control"}
	files, _ := filepath.Glob(root + "/sys/devices/system/cpu/cpu[0-9]*/online") // the pattern is well-formed
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == "0" {
			all = append(all, f, filepath.Join(filepath.Dir(f), "hotplug/target"))
		}
	}
	return all
}
