package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
)

// result is the output of a command.
type result struct {
	out, errs string
	err       error
}

// command runs the command line in this process.
func command(t testing.TB, args ...string) result {
	t.Helper()
	return commandIn(t, context.Background(), args...)
}

func commandIn(t testing.TB, ctx context.Context, args ...string) result {
	t.Helper()
	cmd := root()
	var out, errs bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	return result{out.String(), errs.String(), err}
}

// crashImage returns a crash image, and fails the test if anything in the image changes: it
// is evidence.
func crashImage(t testing.TB, spec fixture.Spec) *fixture.Image {
	t.Helper()
	image := fixture.Get(t, spec)
	type state struct {
		sum  [32]byte
		when time.Time
	}
	look := func() state {
		f, err := os.Open(image.RAM)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return state{[32]byte(h.Sum(nil)), info.ModTime()}
	}
	before := look()
	t.Cleanup(func() {
		if look() != before {
			t.Error("the evidence has changed")
		}
	})
	return image
}

// truths returns what the guest reported of its regular files, by UUID and path. Files
// without a name have the label that inventory gives them.
func truths(image *fixture.Image) map[[2]string]record.File {
	uuid := make(map[string]string)
	for _, d := range image.Disks {
		uuid[d.Name] = d.UUID
	}
	out := make(map[[2]string]record.File)
	for _, f := range image.Truth {
		if f.Mode&0o170000 != 0o100000 {
			continue
		}
		path := string(f.Path)
		if f.NLink == 0 {
			path = (&inventory.File{Inode: inodeOf(f)}).Label()
		}
		out[[2]string{uuid[f.FS], path}] = f
	}
	return out
}

func report(t *testing.T, text string) *inventory.Report {
	t.Helper()
	var r inventory.Report
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("%v in %.200s", err, text)
	}
	return &r
}

func TestListAgainstGuest(t *testing.T) {
	for name, spec := range map[string]fixture.Spec{"typed": fixture.Basic, "untyped": fixture.Untyped} {
		t.Run(name, func(t *testing.T) { listAgainstGuest(t, crashImage(t, spec)) })
	}
}

func listAgainstGuest(t *testing.T, image *fixture.Image) {
	truth := truths(image)
	got := command(t, "salvage", "list", image.RAM, "--json", "--all")
	if got.err != nil {
		t.Fatal(got.err)
	}
	r := report(t, got.out)
	if r.Kernel.Release != image.Release || len(r.FileSystems) != len(image.Disks) || !r.Complete || len(r.Stages) < 4 {
		t.Errorf("%+v, %d file systems, complete: %v, %v", r.Kernel, len(r.FileSystems), r.Complete, r.Stages)
	}
	seen, states := 0, make(map[inventory.State]int)
	for _, fsys := range r.FileSystems {
		for _, f := range fsys.Files {
			states[f.State]++
			want, ok := truth[[2]string{fsys.UUID, inventory.TextOf(f.Path, f.PathBase64)}]
			if !ok {
				t.Errorf("%s: %s is not a file of the guest", fsys.Device, f.Path)
				continue
			}
			seen += 1 + len(f.Links)
			checkAttributes(t, &f, want)
		}
	}
	if seen != len(truth) {
		t.Errorf("%d of the guest's %d files are listed", seen, len(truth))
	}
	if states[inventory.Deleted] != len(image.Disks) || states[inventory.Unknown] > 0 {
		t.Errorf("states %v", states)
	}
	t.Logf("%d files, states %v, stages %v", seen, states, r.Stages)
}

func checkAttributes(t *testing.T, f *inventory.FileReport, want record.File) {
	t.Helper()
	mode := f.Mode
	if f.Inode != want.Ino || f.Size != want.Size || mode != octal(want.Mode) || f.UID != want.UID || f.GID != want.GID ||
		!f.Mtime.Equal(want.Mtime) || want.Generation >= 0 && f.Generation != uint32(want.Generation) {
		t.Errorf("%s is %+v, the guest says %+v", f.Path, f, want)
	}
	if (f.State == inventory.Deleted) != (want.NLink == 0) || f.State == inventory.New && want.Committed {
		t.Errorf("%s is %s, the guest says %d names, durable: %v", f.Path, f.State, want.NLink, want.Committed)
	}
}

func TestListTable(t *testing.T) {
	image := crashImage(t, fixture.Basic)
	all := command(t, "salvage", "list", image.RAM)
	if all.err != nil {
		t.Fatal(all.err)
	}
	lines := strings.Split(strings.TrimSpace(all.out), "\n")
	if !strings.HasPrefix(lines[0], "MODE") || !strings.Contains(lines[len(lines)-1], "unsaved files") || len(lines) < 100 {
		t.Errorf("%d lines: %s\n%s", len(lines), lines[0], lines[len(lines)-1])
	}
	for _, tc := range []struct {
		args []string
		rows func(int) bool
		want string
	}{
		{[]string{"--fs", "vda"}, func(n int) bool { return n > 10 && n < len(lines) }, " vda "},
		{[]string{"--fs", image.Disks[0].UUID}, func(n int) bool { return n > 10 && n < len(lines) }, " vda "},
		{[]string{"--fs", "ext3"}, func(n int) bool { return n > 10 && n < len(lines) }, " vdb "},
		{[]string{"--path", ".inode/*"}, func(n int) bool { return n == len(image.Disks)+2 }, "deleted-but-open"},
		{[]string{"--path", "no such file"}, func(n int) bool { return n == 1 }, "0 unsaved files"},
		{[]string{"--all"}, func(n int) bool { return n > len(lines) }, "cached files"},
	} {
		got := command(t, append([]string{"salvage", "list", image.RAM}, tc.args...)...)
		if n := strings.Count(got.out, "\n"); got.err != nil || !tc.rows(n) || !strings.Contains(got.out, tc.want) {
			t.Errorf("%v: %d lines, %v: %.300s", tc.args, n, got.err, got.out)
		}
	}
	sizes := report(t, command(t, "salvage", "list", image.RAM, "--json", "--sort", "size", "--fs", "vda").out).FileSystems[0].Files
	if !slices.IsSortedFunc(sizes, func(a, b inventory.FileReport) int { return int(b.Size - a.Size) }) {
		t.Error("not sorted by size")
	}
}

func TestSalvageErrors(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	text := filepath.Join(t.TempDir(), "text")
	zeros := filepath.Join(t.TempDir(), "zeros")
	for path, b := range map[string][]byte{empty: nil, text: []byte("hello"), zeros: make([]byte, 1<<20)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	image := crashImage(t, fixture.Basic).RAM
	for want, args := range map[string][]string{
		"no such file":                   {"salvage", "list", "/nonexistent"},
		"open memory":                    {"inspect", empty},
		"text":                           {"salvage", "list", text},
		"no kernel":                      {"inspect", zeros},
		"there are: ":                    {"salvage", "list", image, "--fs", "sda"},
		"syntax error":                   {"salvage", "list", image, "--path", "["},
		"choose path, size":              {"salvage", "list", image, "--sort", "colour"},
		"output archive":                 {"salvage", "extract", image},
		"none of the others":             {"salvage", "extract", image, "-o", "x", "--archive", "y"},
		"empty or does not exist":        {"salvage", "extract", image, "-o", "/"},
		"the manifest is in the archive": {"salvage", "extract", image, "--archive", "-", "--json"},
	} {
		got := command(t, args...)
		if got.err == nil || !strings.Contains(got.err.Error(), want) || exitCode(got.err) != 1 {
			t.Errorf("%v: %v, want %q", args, got.err, want)
		}
	}
}

func TestInspect(t *testing.T) {
	image := crashImage(t, fixture.Basic)
	got := command(t, "inspect", image.RAM)
	for _, want := range []string{image.Release, "sysrq triggered crash", "paging    5 levels", "256.0 MiB", "/mnt/ext4", image.Disks[0].UUID, "console=ttyS0"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("no %q in:\n%s", want, got.out)
		}
	}
	if got.err != nil || got.errs != "" {
		t.Error(got.err, got.errs)
	}
	var in inspection
	if err := json.Unmarshal([]byte(command(t, "inspect", image.RAM, "--json").out), &in); err != nil {
		t.Fatal(err)
	}
	latest := time.Time{}
	for _, f := range image.Truth {
		if f.Mtime.After(latest) {
			latest = f.Mtime
		}
	}
	if now := in.Kernel.Now; now.Before(latest) || now.After(image.Died.Add(time.Second)) || in.Kernel.Boot.After(latest) {
		t.Errorf("booted %v, died %v, %v at the latest; the latest file is of %v", in.Kernel.Boot, now, image.Died, latest)
	}
}

func TestModeText(t *testing.T) {
	for mode, want := range map[uint16]string{0o644: "-rw-r--r--", 0o4751: "-rwsr-x--x", 0o2000: "------S---", 0o1777: "-rwxrwxrwt", 0o040755: "drwxr-xr-x", 0o120777: "lrwxrwxrwx"} {
		if got := modeText(mode); got != want {
			t.Errorf("%o is %s, not %s", mode, got, want)
		}
	}
}
