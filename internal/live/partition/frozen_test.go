package partition

import (
	"slices"
	"testing"

	"understudy.dev/understudy/internal/live/mounts"
)

func TestFreezers(t *testing.T) {
	const both = "24 20 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n" +
		"31 24 0:28 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n" +
		"33 24 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
	const unified = "33 24 0:30 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	for _, tt := range []struct {
		name, groups, mounts string
		want                 []string
	}{
		{"both kinds", "6:freezer:/a\n4:memory:/b\n0::/c/d\n", both, []string{"/sys/fs/cgroup/freezer/a/freezer.state", "/sys/fs/cgroup/unified/c/d/cgroup.events"}},
		{"version 2", "0::/user.slice\n", unified, []string{"/sys/fs/cgroup/user.slice/cgroup.events"}},
		{"with others", "5:devices,freezer:/x:y\n", both, []string{"/sys/fs/cgroup/freezer/x:y/freezer.state"}},
		{"not mounted", "6:freezer:/a\n", unified, nil},
		{"nonsense", "0\n::\n", "x\n - \n", nil},
	} {
		if got := freezers(tt.groups, mounts.Parse(tt.mounts)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	for text, want := range map[string]bool{"populated 1\nfrozen 1\n": true, "populated 1\nfrozen 0\n": false, "FROZEN\n": true, "FREEZING\n": true, "THAWED\n": false} {
		if saysFrozen(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
