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

// TestProgram runs programs in a root that has only the files which Program says they
// need. fio's libraries need some that are in their own directory (DT_RUNPATH).
func TestProgram(t *testing.T) {
	for want, command := range map[string][]string{"it runs": {"/bin/bash", "-c", "echo it runs"}, "fio-3": {"/usr/bin/fio", "--version"}} {
		t.Run(filepath.Base(command[0]), func(t *testing.T) {
			if _, err := os.Stat(command[0]); err != nil {
				t.Skipf("%v: scripts/setup.sh installs it", err)
			}
			testProgram(t, command, want)
		})
	}
}

func testProgram(t *testing.T, command []string, want string) {
	files, err := Program(command[0])
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
	cmd := exec.Command("chroot", append([]string{root}, command...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil || !strings.HasPrefix(said.String(), want) {
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

// TestPrograms: files below a root take precedence over this machine's, their paths are
// without the root, and a file that two programs share is there once.
func TestPrograms(t *testing.T) {
	files, err := Program("/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	i := slices.IndexFunc(files, func(f File) bool { return strings.Contains(f.Path, "libc.so") })
	libc := files[i].Path
	for path, source := range map[string]string{libc: files[i].Source, "/usr/sbin/ours": "/bin/bash"} {
		b, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files, err = Programs(root, "/usr/sbin/ours", "/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	sources := make(map[string]string)
	for _, f := range files {
		if old, ok := sources[f.Path]; ok {
			t.Errorf("%s is there twice, from %s and %s", f.Path, old, f.Source)
		}
		sources[f.Path] = f.Source
	}
	for path, want := range map[string]string{"/usr/sbin/ours": root + "/usr/sbin/ours", libc: root + libc, "/bin/bash": "/bin/bash"} {
		if sources[path] != want {
			t.Errorf("%s is from %q, not %s", path, sources[path], want)
		}
	}
}

// TestAdd: a program brings its libraries, and any other file only itself.
func TestAdd(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no program"), 0o640); err != nil {
		t.Fatal(err)
	}
	files, err := Add(text)
	if err != nil || len(files) != 1 || files[0].Mode != 0o640 || files[0].Path != text {
		t.Errorf("%v, %v", files, err)
	}
	if files, err := Add("/bin/bash"); err != nil || len(files) < 3 {
		t.Errorf("%v, %v", files, err)
	}
	if _, err := Add("/nonexistent"); err == nil {
		t.Error("a file that is not there was added")
	}
	same := Distinct([]File{Copy("/a", text, 0o644), Copy("/a", text, 0o644), Copy("/a", "/bin/bash", 0o644)})
	if len(same) != 2 {
		t.Errorf("distinct: %v", same)
	}
}
