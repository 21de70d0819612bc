package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKeepFiles: a lock that the caller of up holds by a descriptor which is not closed when a
// program starts, as a shell's is not, is not held by what up starts.
func TestKeepFiles(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	held := func() bool {
		out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.Contains(string(out), f.Name())
	}
	if !held() {
		t.Fatal("a program does not inherit the descriptor in the first place")
	}
	if err := keepFiles(); err != nil {
		t.Fatal(err)
	}
	if held() {
		t.Error("a program that is started inherits the caller's descriptor")
	}
}
