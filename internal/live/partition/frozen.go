package partition

import (
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/mounts"
)

// Frozen reports whether one of the partition's control groups is frozen: its threads look
// asleep then. There are two kinds of groups (Documentation/admin-guide/cgroup-v2.rst, cgroup.events,
// and cgroup-v1/freezer-subsystem.rst), and a machine may have both.
func (p *Process) Frozen() bool {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID()))
	if err != nil {
		return false
	}
	for _, file := range freezers(string(groups), mounts.Here()) {
		if b, err := os.ReadFile(file); err == nil && saysFrozen(string(b)) {
			return true
		}
	}
	return false
}

// freezers returns the files that say whether a group is frozen, for a process's list of groups
// (cgroups(7)) and what is mounted here.
func freezers(groups string, mounted iter.Seq[mounts.Mount]) (files []string) {
	unified, freezer := groupMounts(mounted)
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

// groupMounts finds where the groups of either kind are mounted.
func groupMounts(mounted iter.Seq[mounts.Mount]) (unified, freezer string) {
	for m := range mounted {
		switch {
		case m.Type == "cgroup2":
			unified = m.Dir
		case m.Type == "cgroup" && m.HasSuper("freezer"):
			freezer = m.Dir
		}
	}
	return unified, freezer
}

// saysFrozen reports whether the text of such a file says that the group is frozen.
func saysFrozen(text string) bool {
	return strings.Contains(text, "frozen 1") || strings.HasPrefix(text, "FROZEN") || strings.HasPrefix(text, "FREEZING")
}
