package partition

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Frozen says whether one of the partition's control groups is frozen: its threads look
// asleep then. There are two kinds (Documentation/admin-guide/cgroup-v2.rst, cgroup.events,
// and cgroup-v1/freezer-subsystem.rst), and a machine may have both.
func (p *Process) Frozen() bool {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID()))
	if err != nil {
		return false
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for _, file := range freezers(string(groups), string(mounts)) {
		if b, err := os.ReadFile(file); err == nil && saysFrozen(string(b)) {
			return true
		}
	}
	return false
}

// freezers are the files that say so, for a process's list of groups (cgroups(7)) and the
// file systems mounted here (proc(5), mountinfo).
func freezers(groups, mounts string) (files []string) {
	unified, freezer := groupMounts(mounts)
	for line := range strings.Lines(groups) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(part) != 3:
		case part[0] == "0" && part[1] == "" && unified != "":
			files = append(files, filepath.Join(unified, part[2], "cgroup.events"))
		case slices.Contains(strings.Split(part[1], ","), "freezer") && freezer != "":
			files = append(files, filepath.Join(freezer, part[2], "freezer.state"))
		}
	}
	return files
}

// groupMounts finds where the groups of either kind are.
func groupMounts(mounts string) (unified, freezer string) {
	for line := range strings.Lines(mounts) {
		before, after, _ := strings.Cut(line, " - ")
		at, kind := strings.Fields(before), strings.Fields(after)
		if len(at) < 5 || len(kind) < 3 {
			continue
		}
		switch {
		case kind[0] == "cgroup2":
			unified = at[4]
		case kind[0] == "cgroup" && slices.Contains(strings.Split(kind[2], ","), "freezer"):
			freezer = at[4]
		}
	}
	return unified, freezer
}

// saysFrozen reads what such a file says.
func saysFrozen(text string) bool {
	return strings.Contains(text, "frozen 1") || strings.HasPrefix(text, "FROZEN") || strings.HasPrefix(text, "FREEZING")
}
