package understudy_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
)

// TestDeadAlone checks that the library needs nothing that acts on a running machine.
func TestDeadAlone(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./dead/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for path := range strings.Lines(string(out)) {
		seen = seen || strings.HasPrefix(path, module+"dead/ram")
		if strings.HasPrefix(path, module) && !strings.HasPrefix(path, module+"dead/") {
			t.Errorf("dead needs %s", path)
		}
	}
	if !seen {
		t.Errorf("dead/ram is not among %s", out)
	}
}

// TestOutside builds the program of dead/README.md as a stranger does, in its own module,
// and makes it list the unsaved files of a crash.
func TestOutside(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	dir := t.TempDir()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("dead/README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n(.*?)```").FindSubmatch(readme)
	if program == nil {
		t.Fatal("dead/README.md has no program")
	}
	ours, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, requires, _ := strings.Cut(string(ours), "\n") // the same versions, so that nothing is fetched from the network
	requires, _, _ = strings.Cut(requires, "\ntool")
	name := strings.TrimSuffix(module, "/")
	for file, text := range map[string]string{
		"main.go": string(program[1]),
		"go.mod":  fmt.Sprintf("module example.com/unsaved\n%s\nrequire %s v0.0.0\n\nreplace %s => %s\n", requires, name, name, strconv.Quote(root)),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sums, err := os.ReadFile("go.sum")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", "unsaved", ".")
	build.Dir, build.Env = dir, append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	run := exec.Command(filepath.Join(dir, "unsaved"), image.RAM)
	run.Stderr = os.Stderr
	out, err := run.Output()
	if err != nil {
		t.Fatal(err)
	}
	compareListed(t, image, string(out))
}

// compareListed compares a list with what the guest said right before it crashed.
func compareListed(t *testing.T, image *fixture.Image, out string) {
	t.Helper()
	listed := make(map[string]string) // by file system and path: how much is unsaved
	for line := range strings.Lines(out) {
		if f := strings.Split(strings.TrimSpace(line), "\t"); len(f) == 3 {
			listed[f[0]+" "+f[2]] = f[1]
		}
	}
	wanted := 0
	for _, d := range image.Disks {
		known := make(map[string]bool)
		for _, f := range image.Files(d.Name) {
			at := d.UUID + " " + strconv.Quote(string(f.Path))
			known[at] = true
			if f.Mode&0o170000 != 0o100000 || f.NLink != 1 || len(f.Changed) == 0 {
				continue
			}
			if d.Type != "ext3" {
				wanted++
			}
			said, ok := listed[at]
			switch {
			case !ok && d.Type == "ext3":
				// A commit of its journal also writes data, and may have happened by itself.
			case !ok:
				t.Errorf("%s: %q was not saved, and is not listed", d.Name, f.Path)
			case !strings.HasSuffix(said, fmt.Sprintf(" of %d bytes unsaved", f.Size)) || strings.HasPrefix(said, "0 "):
				t.Errorf("%s: %q of %d bytes: %s", d.Name, f.Path, f.Size, said)
			}
		}
		for at := range listed {
			if strings.HasPrefix(at, d.UUID) && !known[at] && !strings.Contains(at, `".inode/`) {
				t.Errorf("%s: the guest knew nothing of %s", d.Name, at)
			}
		}
	}
	t.Logf("%d files were not saved", wanted)
	if wanted == 0 {
		t.Error("everything was saved")
	}
}
