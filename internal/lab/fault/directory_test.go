package fault

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
)

// A process of its own serves: one that also used what it serves could wait for itself.
func TestMain(m *testing.M) {
	if at := os.Getenv("FAULT_AT"); at != "" {
		if err := Serve(os.Getenv("FAULT_OF"), at, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestServe(t *testing.T) {
	tier.Guest(t) // it mounts
	of, at := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(of, "f"), []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nice", "-n", "-20", os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), "FAULT_AT="+at, "FAULT_OF="+of), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(out)
	say := func(format string, args ...any) (n int) {
		t.Helper()
		fmt.Fprintf(in, format, args...)
		if _, err := fmt.Fscan(answers, &n); err != nil {
			tier.Lacks(t, fmt.Sprint("nothing can be mounted: ", err))
		}
		return n
	}
	say("")
	f, err := os.OpenFile(filepath.Join(at, "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	write := func() error {
		_, err := f.WriteAt([]byte("x"), 1)
		return err
	}
	say("count %d\n", os.Getpid())
	if err := errors.Join(write(), f.Sync()); err != nil {
		t.Fatal(err)
	}
	if n := say("fail 4 %d\n", int(syscall.ENOSPC)); n != 2 {
		t.Errorf("%d changes, want 2", n)
	}
	if err := write(); err != nil {
		t.Error(err)
	}
	if err := write(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the fourth: %v", err)
	}
	if err := f.Sync(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("after it: %v", err)
	}
	if n := say("heal\n"); n != 5 {
		t.Errorf("%d changes, want 5", n)
	}
	if err := errors.Join(write(), f.Sync(), f.Close()); err != nil {
		t.Errorf("healed: %v", err)
	}
	io.WriteString(in, "end\n")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
