package offline

import (
	"strings"
	"testing"
)

// TestBootable: XFS and btrfs are written to in a guest, and so is ext4 with --guest; without a
// kernel for it nothing is begun.
func TestBootable(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, c := range []struct {
		guest string
		types []string
		fails bool
	}{
		{"/nowhere", []string{"xfs"}, true},
		{"/nowhere", []string{"btrfs"}, true},
		{"/nowhere", []string{"ext4"}, true},
		{"", []string{"ext4", "ext3", "ext2"}, false},
		{"", nil, false},
	} {
		a := Adoption{Options: Options{Guest: c.guest}}
		err := a.bootable(t.Context(), c.types)
		if (err != nil) != c.fails || c.fails && !strings.Contains(err.Error(), c.types[0]) {
			t.Errorf("%q with a kernel in %q: %v", c.types, c.guest, err)
		}
	}
}
