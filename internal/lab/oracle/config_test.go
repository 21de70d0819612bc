package oracle

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
)

// TestFormat makes a file system of each configuration, in which its check finds nothing.
func TestFormat(t *testing.T) {
	for _, program := range []string{"mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"} {
		if _, err := exec.LookPath(program); err != nil {
			tier.Lacks(t, fmt.Sprintf("%v; run scripts/setup.sh", err))
		}
	}
	seen := make(map[string]bool)
	for n, c := range slices.Concat(Configs, Rare, Remade) {
		if seen[c.Name] {
			t.Errorf("%s is there twice", c.Name)
		}
		seen[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "disk.img")
			made := Case{Seed: uint64(n), Config: c}
			if err := made.format(image); err != nil {
				t.Fatal(err)
			}
			if c.Outside {
				return // e2fsck would look for the journal among this machine's devices
			}
			if said, err := made.check(image); err != nil || said != "" {
				t.Errorf("%v: %s", err, said)
			}
		})
	}
}

// TestRareBySeed checks that seeds choose no rare configuration, and that names do.
func TestRareBySeed(t *testing.T) {
	rare := Names(slices.Concat(Rare, Remade))
	cases, err := Cases(1, 200, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if slices.Contains(rare, c.Config.Name) {
			t.Errorf("%v: chosen by its seed", c)
		}
	}
	for _, name := range rare {
		if cases, err := Cases(1, 1, []string{name}, []string{"newest-cloud"}, nil); err != nil || cases[0].Config.Name != name {
			t.Errorf("%s: %v, %v", name, cases, err)
		}
	}
}
