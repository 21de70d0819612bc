package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKeepFiles checks that what up starts does not hold a lock of the caller, whose
// descriptor is not close-on-exec, as in a shell.
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
