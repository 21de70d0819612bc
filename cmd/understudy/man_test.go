package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"understudy.dev/understudy/internal/live/pair"
)

// TestManual checks that each command has a page with all of its options, and that troff and
// the shells accept what is written.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	r := root()
	if err := writeManual(r, dir); err != nil {
		t.Fatal(err)
	}
	all := commands(r)
	if len(all) < 20 {
		t.Errorf("only %d commands", len(all))
	}
	for _, c := range all {
		b := readFile(t, filepath.Join(dir, "man8", pageName(c)+".8"))
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !strings.Contains(string(b), roff("--"+f.Name)) {
				t.Errorf("%s has no %s", pageName(c), f.Name)
			}
		})
	}
	for _, key := range []string{"partitions.NAME.memory", "disks[].image", "nics[].routes[].via", "takeover.refused", "hooks[].on", "nfs.lease", "metrics"} {
		if !strings.Contains(string(readFile(t, filepath.Join(dir, "man5", "understudy-pair.5"))), "\n.B "+roff(key)+"\n") {
			t.Errorf("understudy-pair(5) has no %s", key)
		}
	}
	pages, err := filepath.Glob(filepath.Join(dir, "man?", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range [][]string{append([]string{"groff", "-man", "-Tutf8", "-ww", "-z"}, pages...), {"bash", "-n", filepath.Join(dir, "understudy.bash")}} {
		if _, err := exec.LookPath(tool[0]); err != nil {
			t.Logf("%v: not looked at with it", err)
			continue
		}
		if out, err := exec.Command(tool[0], tool[1:]...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", tool[0], err, out)
		}
	}
}

// TestExamplePair checks that the example of the package is a valid pair.
func TestExamplePair(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(file, []byte(examplePair), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pair.Load(file); err != nil {
		t.Error(err)
	}
}

func TestRoff(t *testing.T) {
	for s, want := range map[string]string{"a-b": `a\-b`, ".x": `\&.x`, "it's": `it\(aqs`, `a\b`: `a\eb`, "x\n.y": "x\n\\&.y"} {
		if got := roff(s); got != want {
			t.Errorf("%q is %q, not %q", s, got, want)
		}
	}
}
