package offline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/salvage"
)

const custodyText = `{"version": 1, "name": "web", "pid": 17, "started": 5, "boot": "b", "memory": "/m", "disks": [{"path": "/d", "partition": 3}, {"path": "/e"}], "missing": []}`

func TestParseCustody(t *testing.T) {
	c, err := parseCustody([]byte(custodyText))
	if err != nil || len(c.Places) != 2 || c.Places[0].argument() != "/d --partition 3" || c.Places[1].String() != "/e" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, change := range [][2]string{
		{`"version": 1`, `"version": 2`}, {`"/m"`, `"m"`}, {`"/m"`, `""`}, {`"/d"`, `"d"`}, {`"partition": 3`, `"partition": -1`}, {`"pid": 17`, `"pid": 0`}, {`"pid": 17`, `"pid": "x"`},
		{`[{"path": "/d", "partition": 3}, {"path": "/e"}]`, `[]`},
	} {
		if c, err := parseCustody([]byte(strings.Replace(custodyText, change[0], change[1], 1))); err == nil {
			t.Errorf("with %s: %+v", change[1], c)
		}
	}
}

// FuzzParseCustody checks that a parsed record has what is needed, and parses again after it was encoded.
func FuzzParseCustody(f *testing.F) {
	f.Add([]byte(custodyText))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCustody(b)
		if err != nil {
			return
		}
		if !filepath.IsAbs(c.Memory) || len(c.Places) == 0 {
			t.Errorf("%+v", c)
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseCustody(text); err != nil || len(again.Places) != len(c.Places) || !reflect.DeepEqual(again.Places, c.Places) {
			t.Errorf("%+v, %v; was %+v", again, err, c)
		}
	})
}

// TestNewMemory checks that what a killed run has left is overwritten, and that a file which
// another run writes to, or which is complete, is not.
func TestNewMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m")
	if err := os.WriteFile(path+partial, []byte("of a killed run, and longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := newMemory(path)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := newMemory(path); err == nil || !strings.Contains(err.Error(), "Another run") {
		t.Errorf("%v, %v", other, err)
	}
	if _, err := f.WriteString("memory"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := (&custody{Memory: path}).settle(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "memory" {
		t.Errorf("%q, %v", b, err)
	}
	if f, err := newMemory(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v, %v", f, err)
	}
	if err := os.WriteFile(path+partial, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&custody{Memory: path}).settle(); err == nil {
		t.Error("a complete memory was overwritten")
	}
}

// TestResume interrupts a salvage of two disks after the first, and goes on with it: that is left alone, and record
// and memory are removed when nothing needs them any more.
func TestResume(t *testing.T) {
	whole, part, left := &Report{Complete: true}, &Report{}, &Report{Untouched: true}
	full := errors.New("no space left")
	changed := fmt.Errorf("check disk: %w", salvage.ErrDiskChanged)
	type outcome struct {
		report *Report
		err    error
	}
	for name, tc := range map[string]struct {
		first        outcome   // of the first run; the second disk then has no room
		then         []outcome // of those disks that are tried again
		record, kept bool      // afterwards
		complete     bool
	}{
		"all of it":           {outcome{whole, nil}, []outcome{{whole, nil}}, false, false, true},
		"no room again":       {outcome{whole, nil}, []outcome{{nil, full}}, true, true, true},
		"changed since":       {outcome{whole, nil}, []outcome{{nil, changed}}, false, true, true},
		"part of the first":   {outcome{part, nil}, []outcome{{whole, nil}}, false, true, false},
		"one of both changed": {outcome{nil, full}, []outcome{{nil, changed}, {nil, full}}, true, true, true},
		"both changed":        {outcome{nil, full}, []outcome{{nil, changed}, {nil, changed}}, false, true, true},
		"the first refused":   {outcome{left, nil}, []outcome{{left, nil}, {whole, nil}}, false, true, false},
	} {
		dir := t.TempDir()
		in := func(name string) string { return filepath.Join(dir, name) }
		for _, name := range []string{"xfs.img", "ext4.img", "memory"} {
			if err := os.WriteFile(in(name), make([]byte, sector), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := &custody{PID: 1, Boot: "another", Memory: in("memory"), Places: []Place{{Path: in("xfs.img")}, {Path: in("ext4.img")}}}
		a := Adoption{Record: in("record"), Memory: c.Memory}
		if err := c.write(a.Record); err != nil {
			t.Fatal(err)
		}
		outcomes := append([]outcome{tc.first, {nil, full}}, tc.then...)
		a.run = func(context.Context, Options) (*Report, error) {
			if len(outcomes) == 0 {
				t.Fatalf("%s: a disk that is done is tried again", name)
			}
			o := outcomes[0]
			outcomes = outcomes[1:]
			return o.report, o.err
		}
		if _, err := a.finish(t.Context(), c); !errors.Is(err, full) {
			t.Errorf("%s: %v", name, err)
		}
		_, out, err := a.Resume(t.Context())
		wanted := errors.Join(tc.then[0].err, tc.then[len(tc.then)-1].err)
		if (err != nil) != (wanted != nil) || out.Complete() != tc.complete || len(outcomes) > 0 {
			t.Errorf("%s: %v, %+v, not done: %v", name, err, out.Reports, outcomes)
		}
		for path, want := range map[string]bool{a.Record: tc.record, c.Memory: tc.kept} {
			if _, err := os.Stat(path); (err == nil) != want {
				t.Errorf("%s: %s is there: %v", name, path, err == nil)
			}
		}
	}
}

// TestResumeAtTheEnd checks that a run that was killed between the removal of the memory and that of the record leaves
// nothing to do.
func TestResumeAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	p := Place{Path: filepath.Join(dir, "disk.img")}
	c := &custody{PID: 1, Boot: "another", Memory: filepath.Join(dir, "memory"), Places: []Place{p}, Done: []doneDisk{{p, true}}}
	a := Adoption{Record: filepath.Join(dir, "record")}
	if err := c.write(a.Record); err != nil {
		t.Fatal(err)
	}
	if _, out, err := a.Resume(t.Context()); err != nil || !out.Complete() || out.Memory != "" {
		t.Errorf("%+v, %v", out, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
