package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// writer is a service that writes a file, says that it has, and waits: the content is in
// memory only, since the guest is told to write nothing back.
const writer = `  - {name: mark, command: [sh, -c, "echo 0 > /proc/sys/vm/dirty_writeback_centisecs; [ -s /srv/kept ] || echo precious > /srv/kept; echo started >> /srv/mark; sleep 1000000"]}
`

const marker = `  - {name: mark, command: [sh, -c, "echo started >> /srv/mark; sleep 1000000"]}
`

// standing is a pair that is up, for a test to harm.
type standing struct {
	t     *testing.T
	file  string
	image string
}

func stand(t *testing.T, edit ...string) *standing {
	t.Helper()
	vm(t)
	s := &standing{t: t, file: pairFile(t, edit...)}
	s.image = filepath.Join(filepath.Dir(s.file), "data.img")
	t.Cleanup(s.clear)
	return s
}

func (s *standing) up() {
	s.t.Helper()
	if _, err := understudy(s.t, "up", "-d", "-f", s.file); err != nil {
		s.t.Fatal(err)
	}
}

// clear takes away whatever is left, however the test ended.
func (s *standing) clear() {
	exec.Command(binary, "down", "--force", "--discard", "test").Run() // there may be nothing
}

// shell has a side run a command line, as its user would, and waits until it has.
func (s *standing) shell(side, line string) {
	s.t.Helper()
	cmd := exec.Command(binary, "console", "--pair", "test", side)
	keys, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var said lockedBuffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	token := fmt.Sprint("done", time.Now().UnixNano())
	// The quotes keep what is typed from looking like what is printed.
	fmt.Fprintf(keys, "%s\recho '%s'%s\r", line, token[:5], token[5:])
	await(s.t, "answer of the shell to "+line, programLimit, func() bool {
		select {
		case err := <-ended:
			s.t.Fatalf("console ended with %v: %s", err, said.String())
		default:
		}
		return strings.Contains(said.String(), token)
	})
	keys.Write([]byte{leave})
	if err := <-ended; err != nil {
		s.t.Errorf("console: %v: %s", err, said.String())
	}
}

// written waits until the writer has written.
func (s *standing) written() {
	s.t.Helper()
	s.shell("left", "while [ ! -s /srv/kept ] || [ ! -s /srv/mark ]; do sleep 1; done")
}

// read reads a file of the image, which nobody has mounted.
func (s *standing) read(path string) string {
	s.t.Helper()
	out, err := exec.Command("debugfs", "-R", "cat "+path, s.image).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	return string(out)
}

// sound checks the image's file system.
func (s *standing) sound() {
	s.t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", s.image).CombinedOutput(); err != nil {
		s.t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// supervisorPID is the process of the running pair.
func (s *standing) supervisorPID() int {
	s.t.Helper()
	return s.processOf("up\x00-f\x00" + s.file)
}

// qemuPID is the process of a side.
func (s *standing) qemuPID(side string) int {
	s.t.Helper()
	return s.processOf(filepath.Join(dirs.Run("test"), side+".ram"))
}

func (s *standing) processOf(words string) int {
	s.t.Helper()
	pid := processWith(words)
	if pid == 0 {
		s.t.Fatalf("no process has %q", words)
	}
	return pid
}

// processWith is the process whose command line has these words; 0: none.
func processWith(words string) int {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, l := range lines {
		if b, err := os.ReadFile(l); err == nil && bytes.Contains(b, []byte(words)) {
			pid, _ := strconv.Atoi(strings.Split(l, "/")[2]) // it is a number
			return pid
		}
	}
	return 0
}

// recover brings what the pair left in memory to the disk.
func (s *standing) recover() {
	s.t.Helper()
	if _, err := understudy(s.t, "recover", "test"); err != nil {
		s.t.Fatal(err)
	}
	if _, err := os.Stat(dirs.Run("test")); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("the run directory is still there: %v", err)
	}
}

// state waits for a state of the pair.
func (s *standing) state(want string) (st status) {
	s.t.Helper()
	await(s.t, "state "+want, programLimit, func() bool {
		st = s.status()
		return st.State == want
	})
	return st
}

// calm waits until the next death is not one of a crash loop, after which the pair would
// pause.
func (s *standing) calm() {
	s.t.Helper()
	for st := s.status(); time.Since(st.Since) < 11*time.Second; st = s.status() {
		time.Sleep(time.Second)
	}
}

// status is the pair's, for a test that asks often.
func (s *standing) status() (st status) {
	s.t.Helper()
	time.Sleep(50 * time.Millisecond)
	out, err := exec.Command(binary, "status", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	if err != nil {
		st = status{State: err.Error()} // there is none yet, or no more
	}
	return st
}

// TestUpRefusesAMountedImage: an image that this machine has mounted is not shared with
// a guest, whatever way it is mounted.
func TestUpRefusesAMountedImage(t *testing.T) {
	s := stand(t)
	loop, err := exec.Command("losetup", "--find", "--show", s.image).Output()
	if err != nil {
		t.Skipf("losetup: %v: no loop devices here", err)
	}
	device := strings.TrimSpace(string(loop))
	defer exec.Command("losetup", "-d", device).Run()
	_, err = understudy(t, "up", "-d", "-f", s.file)
	if err == nil || !strings.Contains(err.Error(), "attached to "+device) {
		t.Errorf("up on an attached image: %v", err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", device, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", dir).Run()
	_, err = understudy(t, "up", "-d", "-f", s.file)
	if err == nil || !strings.Contains(err.Error(), "mounted on "+dir) {
		t.Errorf("up on a mounted image: %v", err)
	}
	if err := os.WriteFile(s.file, bytes.ReplaceAll(readFile(t, s.file), []byte("data.img"), []byte(device)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = understudy(t, "up", "-d", "-f", s.file)
	if err == nil || !strings.Contains(err.Error(), "mounted on "+dir) {
		t.Errorf("up on a mounted device: %v", err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUpHoldsItsDisks: while a pair is up, no other one gets its disk, and no salvage
// writes to it.
func TestUpHoldsItsDisks(t *testing.T) {
	s := stand(t)
	s.up()
	other := bytes.Replace(readFile(t, s.file), []byte("name: test"), []byte("name: other"), 1)
	file := filepath.Join(filepath.Dir(s.file), "other.yaml")
	if err := os.WriteFile(file, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := understudy(t, "up", "-d", "-f", file); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("a second pair on the disk: %v", err)
	}
	if _, err := understudy(t, "up", "-d", "-f", s.file); err == nil || !strings.Contains(err.Error(), "is up") {
		t.Errorf("the same pair twice: %v", err)
	}
	if st := pairStatus(t); st.State != "protected" {
		t.Errorf("status afterwards: %+v", st)
	}
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
}

// TestDownOfABusyPair: a pair whose disk is in use stays up, says by what, and loses
// nothing; forced down, its memory is kept, and what was in it reaches the disk.
func TestDownOfABusyPair(t *testing.T) {
	s := stand(t, marker, writer)
	s.up()
	s.written()
	s.shell("left", "cd /srv && echo busy > busy && sleep 100000 &")
	if _, err := understudy(t, "down"); err == nil || !strings.Contains(err.Error(), "stays up") || !strings.Contains(err.Error(), "it is in use by ") {
		t.Fatalf("down of a busy pair: %v", err)
	}
	if st := pairStatus(t); st.State != "protected" {
		t.Errorf("status after a down that was refused: %+v", st)
	}
	_, err := understudy(t, "down", "--force")
	if err == nil || !strings.Contains(err.Error(), "understudy recover test") {
		t.Fatalf("forced down: %v", err)
	}
	s.recover()
	s.sound()
	if kept, busy := s.read("/kept"), s.read("/busy"); kept != "precious\n" || busy != "busy\n" {
		t.Errorf("the files are %q and %q", kept, busy)
	}
}

// TestSupervisorKilled: the guests go on; another supervisor takes charge of them, and takes
// over as if nothing had been; one that leaves them on purpose does no harm either, and down
// stops them in good order without one.
func TestSupervisorKilled(t *testing.T) {
	s := stand(t, marker, again)
	s.up()
	ended := func() {
		t.Helper()
		await(t, "end of the supervisor", programLimit, func() bool {
			d, err := supervisor.OpenRunDir(dirs.Run("test"))
			return err == nil && d.Close() == nil
		})
	}
	s.shell("left", "while [ ! -e /srv/done-1 ]; do sleep 1; done")
	if err := unix.Kill(s.supervisorPID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended()
	if _, err := understudy(t, "recover", "test"); err == nil || !strings.Contains(err.Error(), "understudy up") {
		t.Errorf("recover while the guests run: %v", err)
	}
	s.up()
	if st := s.state("protected"); st.Active != "left" || st.Understudy != "right" {
		t.Errorf("status of another supervisor: %+v", st)
	}
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	await(t, "takeover", programLimit, func() bool { return s.status().Takeovers >= 1 })
	if st := s.state("protected"); st.Active != "right" || len(st.Takeover.Refused) > 0 {
		t.Errorf("status after a takeover: %+v", st)
	}
	s.shell("right", "while [ ! -e /srv/done-2 ]; do sleep 1; done")
	if _, err := understudy(t, "leave"); err != nil {
		t.Error(err)
	}
	ended()
	if _, err := understudy(t, "down", "test"); err != nil {
		t.Error(err)
	}
	s.sound()
	for n := 1; n <= 2; n++ {
		if got := s.read(fmt.Sprintf("/file-%d", n)); got != againFile(n) {
			t.Errorf("file %d has %d bytes, or other ones than the %d that were written", n, len(got), len(againFile(n)))
		}
	}
	if !t.Failed() {
		row(t, killed, "supervisor", "at rest; then another one takes charge, takes over, and leaves", "understudy up; understudy down", "exact")
	}
}

// TestActiveDiesUnwatched: what happened while there was no supervisor is seen by the next.
func TestActiveDiesUnwatched(t *testing.T) {
	tier.Full(t, "a death without a supervisor")
	for _, how := range []string{"panic", "end of its process"} {
		t.Run(how, func(t *testing.T) {
			s := stand(t, marker, again)
			s.up()
			s.shell("left", "while [ ! -e /srv/done-1 ]; do sleep 1; done")
			left := s.qemuPID("left")
			if how == "panic" {
				s.shell("left", "(sleep 5; echo c > /proc/sysrq-trigger) &")
			}
			if err := unix.Kill(s.supervisorPID(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if how == "panic" {
				await(t, "panic", programLimit, func() bool {
					return bytes.Contains(readFile(t, filepath.Join(dirs.Run("test"), "left.console.log")), []byte("Kernel panic"))
				})
			} else if err := unix.Kill(left, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			s.up()
			await(t, "takeover", programLimit, func() bool { return s.status().Takeovers >= 1 })
			if st := s.state("protected"); st.Active != "right" || len(st.Takeover.Refused) > 0 {
				t.Errorf("status %+v", st)
			}
			if _, err := understudy(t, "down"); err != nil {
				t.Error(err)
			}
			s.sound()
			if got := s.read("/file-1"); got != againFile(1) {
				t.Errorf("the file has %d bytes, or other ones than the %d that were written", len(got), len(againFile(1)))
			}
			if !t.Failed() {
				row(t, killed, "supervisor, then the active side: "+how, "at rest", "understudy up", "exact")
			}
		})
	}
}

// TestAllKilled: the pair that is left says what is at stake, and it is brought to the disk;
// an up in between does not touch it.
func TestAllKilled(t *testing.T) {
	tier.Full(t, "supervisor and guests killed")
	s := stand(t, marker, writer)
	s.up()
	s.written()
	for _, pid := range []int{s.supervisorPID(), s.qemuPID("left"), s.qemuPID("right")} {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "end of the supervisor", programLimit, func() bool {
		d, err := supervisor.OpenRunDir(dirs.Run("test"))
		return err == nil && d.Close() == nil && processWith(dirs.Run("test")) == 0
	})
	for _, args := range [][]string{{"up", "-d", "-f", s.file}, {"down", "test"}} {
		if _, err := understudy(t, args...); err == nil || !strings.Contains(err.Error(), "understudy recover test") {
			t.Errorf("%s after all were killed: %v", args[0], err)
		}
	}
	s.recover()
	s.sound()
	if kept := s.read("/kept"); kept != "precious\n" {
		t.Errorf("the file is %q", kept)
	}
	s.up()
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
	if !t.Failed() {
		row(t, killed, "supervisor and both guests", "at rest", "understudy recover", "exact")
	}
}

// TestTermination: every signal that a service manager or a terminal sends ends the pair
// in good order, also if its guests get it, too, and nobody reads its output.
func TestTermination(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			if sig != unix.SIGTERM {
				tier.Full(t, "another signal")
			}
			s := stand(t, marker, writer)
			cmd := exec.Command(binary, "up", "-f", s.file)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			s.state("protected")
			s.written()
			out.Close() // nobody reads what it says any more
			for _, pid := range []int{s.qemuPID("left"), s.qemuPID("right"), cmd.Process.Pid} {
				if err := unix.Kill(pid, sig); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
			s.sound()
			if kept := s.read("/kept"); kept != "precious\n" {
				t.Errorf("the file is %q", kept)
			}
		})
	}
}

// TestHeirDies: the understudy dies while it takes over, at each point where the disk is
// in another state. The pair says that the takeover failed, lets go of the disk, and
// recover brings all to it.
func TestHeirDies(t *testing.T) {
	services := `  - {name: mark, ready: 80, command: [sh, -c, "echo started >> /srv/mark; %s; busybox httpd -p 80; sleep 1000000"]}
`
	// Only the understudy has a file beside its disk that makes it die: the first side
	// is started without it.
	die := `[ $(wc -l < /srv/mark) -lt 2 ] && { echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo precious > /srv/kept; } || echo c > /proc/sysrq-trigger`
	s := stand(t, marker, fmt.Sprintf(services, die), "services:", "takeover: {rehearse: false}\nservices:")
	s.up()
	s.written()
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	// It dies before its service is ready.
	st := s.state("failed")
	if !strings.Contains(st.Error, "understudy recover test") {
		t.Errorf("status %+v", st)
	}
	if _, err := understudy(t, "down"); err == nil || !strings.Contains(err.Error(), "understudy recover test") {
		t.Errorf("down of a failed pair: %v", err)
	}
	s.recover()
	s.sound()
	if kept, mark := s.read("/kept"), s.read("/mark"); kept != "precious\n" || mark != "started\nstarted\n" {
		t.Errorf("the files are %q and %q", kept, mark)
	}
	if !t.Failed() {
		row(t, killed, "understudy", "while services start in a takeover, by a panic", "understudy recover", "exact")
	}
}

// TestNoRoomIsNoDeath: a guest that QEMU has stopped, since the host has no room under a
// sparse image, is not dead: the pair says so, waits, and goes on once there is room.
func TestNoRoomIsNoDeath(t *testing.T) {
	s := stand(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(small, unix.MNT_DETACH)
	image := filepath.Join(small, "data.img")
	if out, err := exec.Command("cp", "--sparse=always", s.image, image).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if err := os.WriteFile(s.file, bytes.ReplaceAll(readFile(t, s.file), []byte("image: data.img"), []byte("image: "+image)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.image = image
	s.up()
	s.shell("left", "(dd if=/dev/urandom of=/srv/big bs=1M count=40; sync; echo written > /srv/after; sync) >/dev/null 2>&1 &")
	await(t, "want of room", programLimit, func() bool { return pairStatus(t).Held != "" })
	if st := pairStatus(t); st.State != "protected" || !strings.Contains(st.Held, "io-error") {
		t.Errorf("status %+v", st)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", unix.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	await(t, "going on", programLimit, func() bool { return pairStatus(t).Held == "" })
	s.shell("left", "while [ ! -e /srv/after ]; do sleep 1; done")
	if st := pairStatus(t); st.State != "protected" {
		t.Errorf("status %+v", st)
	}
	row(t, notDead, "no room under a sparse image (ENOSPC)", "until there was room", pairStatus(t).Takeovers)
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
	s.sound()
	if after := s.read("/after"); after != "written\n" {
		t.Errorf("the file is %q", after)
	}
}

// TestStoppedIsNotDead: a QEMU that was stopped or frozen from outside is not dead.
func TestStoppedIsNotDead(t *testing.T) {
	s := stand(t)
	s.up()
	pid := s.qemuPID("left")
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const stopped = 3 * time.Second // ten times the limit of its heartbeat
	time.Sleep(stopped)
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if st := pairStatus(t); st.State != "protected" {
		t.Errorf("status %+v", st)
	}
	row(t, notDead, "SIGSTOP of the active side's QEMU", stopped, pairStatus(t).Takeovers)
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
}

// TestUnderstudyDies: the loss of the understudy is told at once, another one boots, and
// nothing else ends. While none can, each attempt says why, and a crash is asked for twice.
func TestUnderstudyDies(t *testing.T) {
	s := stand(t)
	s.up()
	guest := filepath.Join(filepath.Dir(s.file), "guest.cpio")
	if err := os.Rename(guest, guest+".away"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.qemuPID("right"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := s.state("unprotected"); st.Active != "left" || st.Understudy != "" || st.Error == "" {
		t.Errorf("status %+v", st)
	}
	if _, err := understudy(t, "crash"); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("crash of an unprotected pair: %v", err)
	}
	await(t, "attempt that failed", programLimit, func() bool { return strings.Contains(pairStatus(t).Error, "guest.cpio") })
	if err := os.Rename(guest+".away", guest); err != nil {
		t.Fatal(err)
	}
	if st := s.state("protected"); st.Active != "left" || st.Understudy != "right" || st.Error != "" {
		t.Errorf("status %+v", st)
	}
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
	s.sound()
	if !t.Failed() {
		row(t, killed, "understudy", "at rest", "by itself", "exact")
	}
}
