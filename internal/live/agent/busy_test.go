package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUsersOf finds processes by each way in which they keep a file system busy, and
// none where there is none.
func TestUsersOf(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: no mounts")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if users := usersOf(dir); len(users) > 0 {
		t.Errorf("users of nothing: %v", users)
	}
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "napper")
	if err := os.WriteFile(program, sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*exec.Cmd){
		"directory": func(c *exec.Cmd) { c.Dir = dir },
		"open file": func(c *exec.Cmd) {
			f, err := os.Create(filepath.Join(dir, "open"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			c.ExtraFiles = []*os.File{f}
		},
		"program": func(c *exec.Cmd) { c.Path = program },
	}
	for name, use := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/bin/sleep", "100")
			use(cmd)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			comm := "sleep"
			if cmd.Path == program {
				comm = "napper"
			}
			want := fmt.Sprintf("%d (%s)", cmd.Process.Pid, comm)
			for end := time.Now().Add(10 * time.Second); !slices.Contains(usersOf(dir), want); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("users %v, want %s", usersOf(dir), want)
				}
			}
		})
	}
}
