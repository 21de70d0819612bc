package offline

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
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
