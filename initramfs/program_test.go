package initramfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestProgram runs a program in a root that has nothing but what it is said to
// need.
func TestProgram(t *testing.T) {
	const program = "/bin/bash" // one that is always there, and dynamically linked
	files, err := Program(program)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 3 || !slices.ContainsFunc(files, func(f File) bool { return strings.Contains(f.Path, "libc.so") }) {
		t.Fatalf("only %v", files)
	}
	if os.Getuid() != 0 {
		t.Skip("not root: cannot change the root directory")
	}
	root := t.TempDir()
	for _, f := range files {
		to := filepath.Join(root, f.Path)
		b, err := os.ReadFile(f.Source)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	var said bytes.Buffer
	cmd := exec.Command("chroot", root, program, "-c", "echo it runs")
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil || said.String() != "it runs\n" {
		t.Errorf("%v: %s", err, &said)
	}
}

func TestProgramErrors(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/nonexistent", text} {
		if _, err := Program(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
