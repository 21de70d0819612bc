package pair

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// ThisMachine returns the facts of the machine that we run on, as far as its
// control groups let us use it.
func ThisMachine() (Machine, error) { return readMachine(os.DirFS("/")) }

// Two returns a CPU for each partition of a pair: the same one twice if the machine
// has only one.
func (m Machine) Two() [2]int { return [2]int{m.CPUs[0], m.CPUs[min(1, len(m.CPUs)-1)]} }

// readMachine reads a machine's facts below root.
func readMachine(root fs.FS) (Machine, error) {
	online, err := readCPUs(root, "sys/devices/system/cpu/online", "")
	if err != nil {
		return Machine{}, err
	}
	// This thread's own status: another thread, even the first, may be pinned to the CPUs of
	// the partition that it starts (package partition).
	allowed, err := readCPUs(root, "proc/thread-self/status", "Cpus_allowed_list:")
	if err != nil {
		return Machine{}, err
	}
	available, err := readAvailable(root)
	if err != nil {
		return Machine{}, err
	}
	if free, ok := cgroupFree(root); ok {
		available = min(available, free)
	}
	usable := slices.DeleteFunc(online, func(cpu int) bool { return !slices.Contains(allowed, cpu) })
	return Machine{CPUs: usable, MemAvailable: available}, nil
}

// readCPUs reads a list of CPUs: the whole file, or the line that begins with
// prefix.
func readCPUs(root fs.FS, name, prefix string) ([]int, error) {
	s, err := readLine(root, name, prefix)
	if err != nil {
		return nil, err
	}
	cpus, err := parseCPUs(s)
	if err != nil {
		return nil, fmt.Errorf("read /%s: %w", name, err)
	}
	return cpus, nil
}

// readAvailable returns the bytes that can be had without swapping
// (Documentation/filesystems/proc.rst, MemAvailable).
func readAvailable(root fs.FS) (uint64, error) {
	s, err := readLine(root, "proc/meminfo", "MemAvailable:")
	if err != nil {
		return 0, err
	}
	kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(s, "kB")), 10, 54)
	if err != nil {
		return 0, fmt.Errorf("read /proc/meminfo: MemAvailable: %w", err)
	}
	return kib << 10, nil
}

// readLine returns what follows prefix in the first line that begins with it.
func readLine(root fs.FS, name, prefix string) (string, error) {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return "", fmt.Errorf("read machine: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSpace(rest), nil
		}
	}
	return "", fmt.Errorf("read /%s: no line %q", name, prefix)
}

// cgroupFree returns how many bytes our control groups still let us use, and
// whether any of them has a limit at all. Both layouts are looked at: version
// 2 (Documentation/admin-guide/cgroup-v2.rst) and version 1
// (cgroup-v1/memory.rst). In a container, where the paths of /proc/self/cgroup
// may not exist, the root of the mount is our group.
func cgroupFree(root fs.FS) (free uint64, limited bool) {
	free = ^uint64(0)
	data, _ := fs.ReadFile(root, "proc/self/cgroup")
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		mount, limit, usage := "", "", ""
		switch {
		case parts[0] == "0" && parts[1] == "":
			mount, limit, usage = "sys/fs/cgroup", "memory.max", "memory.current"
		case slices.Contains(strings.Split(parts[1], ","), "memory"):
			mount, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
		default:
			continue
		}
		// Every group above ours limits us as well.
		for group := path.Join("/", parts[2]); ; group = path.Dir(group) {
			dir := path.Join(mount, group)
			most, ok1 := readCount(root, path.Join(dir, limit))
			used, ok2 := readCount(root, path.Join(dir, usage))
			if ok1 && ok2 {
				free, limited = min(free, most-min(used, most)), true
			}
			if group == "/" {
				break
			}
		}
	}
	return free, limited
}

// readCount reads a file with one number. It returns false if the file is absent or says "max".
func readCount(root fs.FS, name string) (uint64, bool) {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil
}
