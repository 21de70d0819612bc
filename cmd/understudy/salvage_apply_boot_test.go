package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/takeover/offline"
)

// TestApplyBoots tests guests that do not come up. A guest that failed once is booted again;
// the console output of each failure is kept in a file, which the error names.
func TestApplyBoots(t *testing.T) {
	tier.Full(t, "guests that do not come up")
	b := newBench(t, fixture.Basic, "ext4")
	t.Setenv("TMPDIR", t.TempDir())
	job := offline.Job{
		Identity: offline.Identity{Sum: "boots"}, Type: "ext4", Check: true,
		Gather: func([]byte) error { return nil },
		Super:  []offline.Region{{Off: 1024, Data: make([]byte, 1024)}},
		Raw:    []offline.Raw{{Off: 0, Data: make([]byte, 512)}},
	}
	apply := func(bad int) error {
		d, err := offline.Source{}.Open(b.disk.Image, disk.Where{}, "")
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		g := guestFor(t)
		whole := g.Image
		g.Image = func(path string) error {
			if bad--; bad >= 0 { // nothing that a kernel can start from
				return os.WriteFile(path, nil, 0o600)
			}
			return whole(path)
		}
		_, err = d.Apply(t.Context(), job, g)
		return err
	}
	err := apply(99)
	b.untouched()
	kept := regexp.MustCompile(regexp.QuoteMeta(os.TempDir())+`/understudy-guest-\d+\.console`).FindAllString(text(err), -1)
	if len(kept) != 2 {
		t.Fatalf("%v", err)
	}
	for _, path := range kept {
		if said, err := os.ReadFile(path); err != nil || !strings.Contains(string(said), "Kernel panic") {
			t.Errorf("%v: %q", err, said)
		}
	}
	if err := apply(1); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "*.console")); err != nil || len(left) != 3 {
		t.Errorf("%v, %v", left, err)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
