package offline

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"understudy.dev/understudy/internal/live/disk"
)

func sample() *record {
	return &record{
		Step: stepCommit, Identity: Identity{Image: "ram", Kernel: "6.1", UUID: "u", Sum: "s"}, Disk: "/d", Size: 1 << 20,
		Before: []Region{{Off: 1024, Data: make([]byte, 1024)}}, After: []Region{{Off: 1024, Data: make([]byte, 1024)}},
	}
}

func TestRecordSurvives(t *testing.T) {
	dir := t.TempDir()
	if _, err := readRecord(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no record: %v", err)
	}
	for _, step := range []string{stepApply, stepCommit, stepVeiled, stepDone} {
		want := sample()
		want.Step = step
		if step == stepVeiled {
			want.Redo = &redo{List: 4096, Size: 5000, Sum: 7}
		}
		if step == stepCommit {
			want.Veil = "text"
		}
		if err := want.write(dir); err != nil {
			t.Fatal(err)
		}
		if got, err := readRecord(dir); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", step, got, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestParseRecordRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*record){
		"version":      func(r *record) { r.Version = 2 },
		"veil, before": func(r *record) { r.Veil = "text" },
		"redo, before": func(r *record) { r.Redo = &redo{} },
		"redo list":    func(r *record) { r.Redo, r.Version = &redo{List: 2, Size: 1}, 2 },
		"redo size":    func(r *record) { r.Redo, r.Version = &redo{List: -1, Size: 1 << 40}, 2 },
		"step":         func(r *record) { r.Step = "dance" },
		"no regions":   func(r *record) { r.Before = nil },
		"empty":        func(r *record) { r.Before[0].Data = nil },
		"half sector":  func(r *record) { r.Before[0].Data = make([]byte, 100) },
		"unaligned":    func(r *record) { r.Before[0].Off = 7 },
		"negative":     func(r *record) { r.Before[0].Off = -512 },
		"behind":       func(r *record) { r.Before[0].Off = r.Size - 512 },
		"no such disk": func(r *record) { r.Size = 0 },
		"no other":     func(r *record) { r.After = nil },
		"other place":  func(r *record) { r.After[0].Off = 0 },
	} {
		r := sample()
		r.Version = recordVersion
		spoil(r)
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRecord(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// FuzzParseRecord checks that a record that parses can be encoded, and is within its disk.
func FuzzParseRecord(f *testing.F) {
	r := sample()
	r.Version = recordVersion
	b, err := json.Marshal(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		for _, g := range r.Before {
			if g.Off < 0 || g.Off+int64(len(g.Data)) > r.Size {
				t.Errorf("%d bytes at %d of %d", len(g.Data), g.Off, r.Size)
			}
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}

// TestRecordOld checks that a record that does not say whether something was refused is not taken
// for that of a complete run.
func TestRecordOld(t *testing.T) {
	for text, lacks := range map[string]bool{"": true, `"refused": true,`: true, `"refused": false,`: false} {
		r, err := parseRecord([]byte(`{` + text + `"version": 1, "step": "apply"}`))
		if err != nil || (r.lacks() != "") != lacks {
			t.Errorf("%s: %v, %+v", text, err, r)
		}
	}
}

// TestClear checks that clear leaves alone what others have in the work directory.
func TestClear(t *testing.T) {
	mine := Identity{Sum: "s"}
	for name, tc := range map[string]struct {
		left  map[string]string
		step  string
		sum   string
		wrong bool
	}{
		"nothing":         {},
		"killed early":    {left: map[string]string{"staging": "x", "record.json.new": ""}},
		"killed late":     {left: map[string]string{"overlay.qcow2": "x"}},
		"same run":        {left: map[string]string{"overlay.qcow2": "x", "staging": ""}, step: stepApply, sum: "s"},
		"another's":       {left: map[string]string{"overlay.qcow2": "x"}, step: stepApply, sum: "t", wrong: true},
		"another's, done": {left: map[string]string{"overlay.qcow2": "x"}, step: stepDone, sum: "t"},
		"somebody's":      {left: map[string]string{"letters.txt": "dear"}, wrong: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.img")
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			work := path + ".understudy"
			if tc.left != nil {
				if err := os.Mkdir(work, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			for name, text := range tc.left {
				if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tc.step != "" {
				r := sample()
				r.Step, r.Identity.Sum = tc.step, tc.sum
				if err := r.write(work); err != nil {
					t.Fatal(err)
				}
			}
			d, err := Source{}.Open(path, disk.Where{}, "")
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			err = d.clear(mine)
			if (err != nil) != tc.wrong {
				t.Errorf("%v", err)
			}
			left, err := os.ReadDir(work)
			if err != nil || !tc.wrong && len(left) > 0 || tc.wrong && len(left) < len(tc.left) {
				t.Errorf("there is %v, %v", left, err)
			}
		})
	}
}
