package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fault"
	"understudy.dev/understudy/internal/lab/tier"
)

// Variables of the environment that make this test binary serve a directory at another
// place, and have it fail.
const (
	faultOf = "UNDERSTUDY_TEST_FAULT_OF"
	faultAt = "UNDERSTUDY_TEST_FAULT_AT"
)

// breaking is a directory whose files can be made to fail.
type breaking struct {
	t   *testing.T
	dir string // where it is mounted
	in  *os.File
	out *bufio.Reader
}

func breakingAt(t *testing.T, of string) *breaking {
	t.Helper()
	b := &breaking{t: t, dir: t.TempDir()}
	cmd := exec.Command("nice", "-n", "-20", os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), faultOf+"="+of, faultAt+"="+b.dir), os.Stderr
	in, told, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, b.in = in, told
	answers, err := cmd.StdoutPipe()
	if err == nil {
		err = errors.Join(cmd.Start(), in.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	b.out = bufio.NewReader(answers)
	t.Cleanup(func() {
		fmt.Fprintln(b.in, "end")
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if _, err := fmt.Fscan(b.out, new(int)); err != nil {
		tier.Lacks(t, fmt.Sprint("nothing can be mounted: ", err))
	}
	return b
}

// tell gives it an order, and returns how many changes it had counted.
func (b *breaking) tell(format string, args ...any) (n int) {
	b.t.Helper()
	fmt.Fprintf(b.in, format+"\n", args...)
	if _, err := fmt.Fscan(b.out, &n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// TestDiskFails: from one write of a takeover on, of the supervisor or of the understudy's
// QEMU, a disk has no room any more, or an I/O error for everybody. What the supervisor
// cannot write ends the takeover; a guest waits for room. Once the disk is mended, all is
// brought to it. An I/O error of the understudy's own kernel is one as in any machine: what
// was brought over is in the memory that is kept.
func TestDiskFails(t *testing.T) {
	if !tier.IsFull() {
		diskFails(t, "supervisor", 1, unix.ENOSPC)
		return
	}
	writes := map[string]int{"supervisor": diskFails(t, "supervisor", 0, 0), "right": diskFails(t, "right", 0, 0)}
	t.Logf("writes in a takeover: %v", writes)
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EIO} {
		for who, n := range writes {
			for _, at := range []int{1, n / 2, n} {
				t.Run(fmt.Sprintf("%s/%d/%s", who, at, unix.ErrnoName(errno)), func(t *testing.T) {
					diskFails(t, who, at, errno)
				})
			}
		}
	}
}

// diskFails has the disk fail with that write of a process; with errno 0 it only counts.
func diskFails(t *testing.T, who string, at int, errno unix.Errno) (writes int) {
	of := t.TempDir()
	b := breakingAt(t, of)
	s := stand(t, marker, again, "image: data.img", "image: "+filepath.Join(b.dir, "data.img"))
	if err := os.Rename(s.image, filepath.Join(of, "data.img")); err != nil {
		t.Fatal(err)
	}
	s.image = filepath.Join(of, "data.img")
	s.up()
	s.wrote("left", 1)
	pid := s.supervisorPID()
	if who != "supervisor" {
		pid = s.qemuPID(who)
	}
	b.tell("count %d", pid)
	if errno != 0 {
		b.tell("fail %d %d", at, errno)
	}
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	late := time.Now().Add(30 * time.Second)
	st := s.status()
	for ; st.State != "failed" && (st.Takeovers == 0 || st.State == "taking over") && st.Held == "" && time.Now().Before(late); st = s.status() {
	}
	writes = b.tell("heal")
	await(t, "end of the takeover", programLimit, func() bool {
		st = s.status()
		return st.State != "taking over"
	})
	t.Logf("%s, %d takeovers, held %q, error %q, troubles %q, last takeover %+v", st.State, st.Takeovers, st.Held, st.Error, st.Troubles, st.Takeover)
	end := "understudy down"
	if _, err := understudy(t, "down"); err != nil {
		end = "understudy recover"
		exec.Command(binary, "down", "--force").Run() // it is up, and cannot stop in good order, or is not up any more
		s.recover()
	}
	s.sound()
	s.exact(1)
	if errno != 0 && !t.Failed() {
		row(t, killed, fmt.Sprintf("the disk (%s)", unix.ErrnoName(errno)), fmt.Sprintf("with write %d of %s", at, who), end, "exact")
	}
	return writes
}

func serveFault() {
	if at := os.Getenv(faultAt); at != "" {
		if err := fault.Serve(os.Getenv(faultOf), at, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}
