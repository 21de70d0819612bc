package agent

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/mounts"
)

// usersOf names the processes that keep the file system on dir from being unmounted, as
// "PID (command)": by a directory they are in, an open file, or a mapping (proc(5)).
func usersOf(dir string) []string {
	var at unix.Stat_t
	if err := unix.Stat(dir, &at); err != nil {
		return nil
	}
	var users []string
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, p := range processes {
		if !uses(p, at.Dev) {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(p, "comm")) // it may just have ended
		users = append(users, fmt.Sprintf("%s (%s)", filepath.Base(p), strings.TrimSpace(string(comm))))
	}
	return users
}

func uses(process string, dev uint64) bool {
	links, _ := filepath.Glob(filepath.Join(process, "fd", "*"))
	links = append(links, filepath.Join(process, "cwd"), filepath.Join(process, "root"), filepath.Join(process, "exe"))
	if slices.ContainsFunc(links, func(l string) bool {
		var st unix.Stat_t
		return unix.Stat(l, &st) == nil && st.Dev == dev
	}) {
		return true
	}
	f, err := os.Open(filepath.Join(process, "maps"))
	if err != nil {
		return false
	}
	defer f.Close()
	// Major and minor number in hexadecimal are the fourth field.
	want := fmt.Sprintf("%02x:%02x", unix.Major(dev), unix.Minor(dev))
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 3 && fields[3] == want {
			return true
		}
	}
	return false
}

// mountsIn names the mounts in a directory, as "the mount on DIR".
func mountsIn(dir string) (names []string) {
	for m := range mounts.Here() {
		if strings.HasPrefix(m.Dir, dir+"/") {
			names = append(names, "the mount on "+m.Dir)
		}
	}
	return names
}

// mountsOf names the mounts of a device in the mount namespaces of all processes, as "the mount on
// DIR", with the process if its namespace is not that of this process.
func mountsOf(device string) (names []string) {
	var st unix.Stat_t
	if unix.Stat(device, &st) != nil {
		return nil
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	own, _ := os.Readlink("/proc/self/ns/mnt") // empty without /proc
	seen := make(map[string]bool)
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, p := range processes {
		space, err := os.Readlink(filepath.Join(p, "ns/mnt"))
		info, _ := os.ReadFile(filepath.Join(p, "mountinfo")) // it may just have ended
		if err != nil || seen[space] || len(info) == 0 {
			continue
		}
		seen[space] = true
		of := ""
		if space != own {
			comm, _ := os.ReadFile(filepath.Join(p, "comm"))
			of = fmt.Sprintf(" of process %s (%s)", filepath.Base(p), strings.TrimSpace(string(comm)))
		}
		for m := range mounts.Parse(string(info)) {
			if m.Device == number || m.Source == device { // a btrfs mount has its own device number
				names = append(names, "the mount on "+m.Dir+of)
			}
		}
	}
	return names
}
