package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/internal/live/pair"
)

// TestLackingRoots checks that the record says whose root disk may lack something, as long as the memory exists.
func TestLackingRoots(t *testing.T) {
	d := &RunDir{Path: t.TempDir()}
	memory := KeptMemory{File: d.RAM("left"), Why: "its root disk"}
	for name, tc := range map[string]struct {
		r    Record
		want string
	}{
		"ended badly":                      {Record{}, "left right "},
		"one is done":                      {Record{Roots: []string{"left"}}, "right "},
		"ended well":                       {Record{Saved: true}, ""},
		"a dead side":                      {Record{Saved: true, Dead: &DeadSide{Name: "right", Root: "right.img"}}, "right "},
		"a dead side that is kept":         {Record{Saved: true, Dead: &DeadSide{Name: "right", Why: "2 things"}}, ""},
		"not powered off":                  {Record{Saved: true, Kept: []KeptMemory{memory}}, "left "},
		"kept of one that died before":     {Record{Saved: true, Kept: []KeptMemory{{File: filepath.Join(d.Path, "kept-1-left.ram")}}}, ""},
		"done, and a dead side after that": {Record{Roots: []string{"left"}, Dead: &DeadSide{Name: "left", Root: "left.img"}}, "left right "},
	} {
		if got, err := d.LackingRoots(); err != nil || len(got) > 0 {
			t.Errorf("before anything is written down: %v, %v", got, err)
		}
		p := pair.Pair{Partitions: [2]pair.Partition{{Name: "left", Root: "left.img"}, {Name: "right", Root: "right.img"}}}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		for path, b := range map[string][]byte{filepath.Join(d.Path, pairName): b, d.RAM("left"): nil, d.RAM("right"): nil} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d.Record = &tc.r
		names := func() (names string) {
			lacking, err := d.LackingRoots()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range lacking {
				names += p.Name + " "
			}
			return names
		}
		if got := names(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		// A root disk that could not be brought up to date still lacks it, and its memory is kept.
		lacking, _ := d.LackingRoots()
		for _, p := range lacking {
			d.RootLacks(d.Record, p, errors.New("no room"))
			d.RootLacks(d.Record, p, errors.New("no room"))
		}
		if d.Record.Saved = true; names() != tc.want || d.AtStake() != (tc.want != "" || len(tc.r.Kept) > 0 || tc.r.Dead != nil) {
			t.Errorf("%s, once it could not be rescued: %s, at stake: %v", name, names(), d.AtStake())
		}
		for _, p := range lacking {
			d.RootHas(d.Record, p)
		}
		if names() != "" || tc.want != "" && d.AtStake() {
			t.Errorf("%s, once it was rescued: %s, %+v", name, names(), d.Record)
		}
		// What was refused is not looked for again, as if it could still be brought there.
		for _, p := range lacking {
			d.Record.Roots = nil
			d.RootLacks(d.Record, p, fmt.Errorf("its disk: %w", ErrPartly))
		}
		if names() != "" || d.AtStake() != (tc.want != "" || len(tc.r.Kept) > 0 || tc.r.Dead != nil) {
			t.Errorf("%s, once something was refused: %s, %+v", name, names(), d.Record)
		}
		for _, path := range []string{filepath.Join(d.Path, pairName), d.RAM("left"), d.RAM("right")} {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}
