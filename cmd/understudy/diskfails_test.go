package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fault"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestDiskFails checks takeovers in which a disk runs out of room, or fails with an I/O
// error for everybody, from one write of the supervisor or of the understudy's QEMU on.
// What the supervisor cannot write ends the takeover; a guest waits for room. Once the disk
// works again, everything is brought to it. An I/O error in the understudy's own kernel is
// like one in any machine: what was brought over is in the memory that is kept.
func TestDiskFails(t *testing.T) {
	if !tier.IsFull() {
		diskFails(t, "supervisor", 1, unix.ENOSPC)
		return
	}
	writes := map[string]int{"supervisor": diskFails(t, "supervisor", 0, 0), "right": diskFails(t, "right", 0, 0)}
	t.Logf("writes in a takeover: %v", writes)
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EIO} {
		for who, n := range writes {
			for _, at := range slices.Compact([]int{1, max(1, n/2), n}) {
				t.Run(fmt.Sprintf("%s/%d/%s", who, at, unix.ErrnoName(errno)), func(t *testing.T) {
					diskFails(t, who, at, errno)
				})
			}
		}
	}
}

// diskFails makes the disk fail from a given write of a process on; with errno 0 it only counts the writes.
func diskFails(t *testing.T, who string, write int, errno unix.Errno) (writes int) {
	t.Helper()
	of, at := t.TempDir(), t.TempDir()
	disk, err := fault.Mount(of, at)
	if err != nil {
		tier.Lacks(t, fmt.Sprint("nothing can be mounted: ", err))
	}
	t.Cleanup(func() {
		if err := disk.Unmount(); err != nil {
			t.Error(err)
		}
	})
	tell := func(format string, args ...any) int {
		t.Helper()
		n, err := disk.Tell(format, args...)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	s := stand(t, marker, again, "image: data.img", "image: "+filepath.Join(at, "data.img"))
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
	tell("count %d", pid)
	if errno != 0 {
		tell("fail %d %d", write, errno)
	}
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	late := time.Now().Add(30 * time.Second)
	st := s.status()
	for ; st.State != "failed" && (st.Takeovers == 0 || st.State == "taking over") && st.Held == "" && time.Now().Before(late); st = s.status() {
	}
	writes = tell("heal")
	await(t, "end of the takeover", programLimit, func() bool {
		st = s.status()
		return st.State != "taking over"
	})
	t.Logf("%s, %d takeovers, held %q, error %q, troubles %q, last takeover %+v", st.State, st.Takeovers, st.Held, st.Error, st.Troubles, st.Takeover)
	end := "understudy down"
	if _, err := understudy(t, "down"); err != nil {
		end = "understudy recover"
		exec.Command(binary, "down", "--force").Run() // the pair may be up and unable to stop in good order, or not be up any more
		s.recover()
	}
	s.sound()
	s.exact(1)
	if errno != 0 && !t.Failed() {
		row(t, killed, fmt.Sprintf("the disk (%s)", unix.ErrnoName(errno)), fmt.Sprintf("with write %d of %s", write, who), end, "exact")
	}
	return writes
}
