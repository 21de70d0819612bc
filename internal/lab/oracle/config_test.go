package oracle

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
)

// TestFormat makes a file system of each configuration, in which e2fsck finds nothing.
func TestFormat(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		tier.Lacks(t, fmt.Sprintf("%v; run scripts/setup.sh", err))
	}
	seen := make(map[string]bool)
	for n, c := range slices.Concat(Configs, Rare) {
		if seen[c.Name] {
			t.Errorf("%s is there twice", c.Name)
		}
		seen[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "disk.img")
			if err := (Case{Seed: uint64(n), Config: c}).format(image); err != nil {
				t.Fatal(err)
			}
			if c.Outside {
				return // e2fsck would look for the journal among this machine's devices
			}
			if said, err := check(image); err != nil || said != "" {
				t.Errorf("%v: %s", err, said)
			}
		})
	}
}

// TestRareBySeed checks that seeds choose no rare configuration, and that names do.
func TestRareBySeed(t *testing.T) {
	cases, err := Cases(1, 200, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if slices.Contains(RareNames(), c.Config.Name) {
			t.Errorf("%v: chosen by its seed", c)
		}
	}
	for _, name := range RareNames() {
		if cases, err := Cases(1, 1, []string{name}, []string{"newest-cloud"}, nil); err != nil || cases[0].Config.Name != name {
			t.Errorf("%s: %v, %v", name, cases, err)
		}
	}
}
