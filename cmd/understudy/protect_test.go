package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

// TestVeiledRoot checks that a partition of a root disk that a rescue has left without its
// superblock does not count as clean.
func TestVeiledRoot(t *testing.T) {
	root := emptyRoot(t)
	checked(t, "sh", "-c", "echo start=2048 | /sbin/sfdisk -q --label dos "+root)
	mkfs(t, "-E", "offset=1048576", root, "62M")
	memory := filepath.Join(t.TempDir(), "left.ram")
	if err := os.WriteFile(memory, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	rescue := rescueRoot("test")
	if err := rescue(t.Context(), root, memory); err != nil {
		t.Errorf("one that was unmounted: %v", err)
	}
	f, err := os.OpenFile(root, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const veil = "understudy salvage apply was broken off while it wrote to this disk. Apply the same image again to finish it: "
	if _, err := f.WriteAt([]byte(veil), 1<<20+1024); err != nil {
		t.Fatal(err)
	}
	if err := rescue(t.Context(), root, memory); !errors.Is(err, takeover.ErrInBetween) || !strings.Contains(err.Error(), "partition 1: ") {
		t.Errorf("one that is in between: %v", err)
	}
}

// TestOtherRoot checks that a root disk is not in between because of the record of an interrupted commit to another
// root disk that had its name.
func TestOtherRoot(t *testing.T) {
	for name, tc := range map[string]struct {
		on      string
		between bool
	}{"its own": {"as it is to be", true}, "another's": {"of another", false}} {
		path := filepath.Join(t.TempDir(), "root.img")
		sectors := func(text string) []byte { return append([]byte(text), make([]byte, 512-len(text))...) }
		if err := errors.Join(os.WriteFile(path, sectors(tc.on), 0o600), os.Truncate(path, 1<<20), os.Mkdir(path+".understudy", 0o700)); err != nil {
			t.Fatal(err)
		}
		record := fmt.Sprintf(`{"version":1,"step":"veiled","size":1048576,"before":[{"off":0,"data":%q}],"after":[{"off":0,"data":%q}]}`,
			base64.StdEncoding.EncodeToString(sectors("as it was")), base64.StdEncoding.EncodeToString(sectors("as it is to be")))
		memory := filepath.Join(t.TempDir(), "left.ram")
		if err := errors.Join(os.WriteFile(filepath.Join(path+".understudy", "record.json"), []byte(record), 0o600), os.WriteFile(memory, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := rescueRoot("test")(t.Context(), path, memory); err == nil || errors.Is(err, takeover.ErrInBetween) != tc.between {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTidyTells checks that down reports what it could not bring to a root disk, since there is no
// supervisor to report it.
func TestTidyTells(t *testing.T) {
	var said bytes.Buffer
	o := tidyOptions("test", &said)
	o.Trouble(wire.TroubleNotice{What: "root disk of partition left: lost"})
	if fmt.Fprintln(o.Log, "power it off"); said.String() != "understudy: root disk of partition left: lost\npower it off\n" {
		t.Errorf("it said %q", &said)
	}
}

// TestAwait checks that an attempt that failed while the active side lived does not count for the takeover.
func TestAwait(t *testing.T) {
	for name, tc := range map[string]struct {
		before, after int // attempts that failed
		wrong         bool
	}{
		"at once":        {},
		"in the end":     {after: failures - 1},
		"not before":     {before: 1, after: failures - 1},
		"not at all":     {after: failures, wrong: true},
		"not before too": {before: 1, after: failures, wrong: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := &protection{end: func() {}, done: make(chan struct{}), last: make(chan error, 1)}
			for range tc.before {
				p.last <- errors.New("no room")
			}
			err := p.await(t.Context(), func() {
				go func() {
					defer close(p.done)
					for range tc.after {
						p.last <- errors.New("no room")
					}
					for n := 0; len(p.last) > 0 && n < 1000; n++ { // wait until all are read before the understudy is there
						time.Sleep(time.Millisecond)
					}
				}()
			})
			if (err != nil) != tc.wrong {
				t.Errorf("%v", err)
			}
		})
	}
}
