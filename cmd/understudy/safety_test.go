package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fault"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// TestUpRefusesAMountedImage checks that an image that this machine has mounted, in
// whatever way, is not shared with a guest.
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

// TestUpHoldsItsDisks checks that, while a pair is up, no other pair gets its disk, and no
// salvage writes to it.
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

// TestDownOfABusyPair checks that a pair whose disk is in use stays up, reports what uses the disk, and
// loses nothing. When it is forced down, its memory is kept, and what was in memory reaches the disk.
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

// TestSupervisorKilled checks that the guests go on; that another supervisor takes charge of
// them, and takes over as if nothing had happened; that a supervisor that leaves them on
// purpose does no harm either; and that down stops them in good order without a supervisor.
func TestSupervisorKilled(t *testing.T) {
	s := stand(t, marker, again, "services:", "hooks:\n  - {command: [/bin/sleep, '5'], on: [left]}\nservices:")
	s.up()
	ended := func() {
		t.Helper()
		await(t, "end of the supervisor", programLimit, func() bool {
			d, err := supervisor.OpenRunDir(dirs.Run("test"))
			return err == nil && d.Close() == nil
		})
	}
	s.wrote("left", 1)
	if err := unix.Kill(s.supervisorPID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended()
	if _, err := understudy(t, "recover", "test"); err == nil || !strings.Contains(err.Error(), "understudy up") {
		t.Errorf("recover while the guests run: %v", err)
	}
	text := readFile(t, s.file) // up must work whatever has become of the file
	if err := os.WriteFile(s.file, append(text, "no-key: 1\n"...), 0o600); err != nil {
		t.Fatal(err)
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
	s.wrote("right", 2)
	leaving := s.supervisorPID()
	if _, err := understudy(t, "leave"); err != nil {
		t.Error(err)
	}
	if d, err := supervisor.OpenRunDir(dirs.Run("test")); err != nil || !d.HasGuests() || d.Close() != nil {
		t.Errorf("a supervisor that has left: %+v, %v", d, err)
	}
	// A supervisor that still has hooks to run leaves in any case when systemd ends it.
	if err := unix.Kill(leaving, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	await(t, "end of the supervisor", programLimit, func() bool { return processWith("up\x00-f\x00"+s.file) == 0 })
	if d, err := supervisor.OpenRunDir(dirs.Run("test")); err != nil || !d.HasGuests() || d.Close() != nil {
		t.Errorf("one that was to end while it left: %+v, %v", d, err)
	}
	if _, err := understudy(t, "down", "test"); err != nil {
		t.Error(err)
	}
	s.sound()
	s.exact(2)
	if !t.Failed() {
		row(t, killed, "supervisor", "at rest; then another one takes charge, takes over, and leaves", "understudy up; understudy down", "exact")
	}
}

// stubborn is a service that reports on the console when it is to stop, and does not stop.
const stubborn = `  - {name: mark, command: [sh, -c, "echo started >> /srv/mark; trap 'echo Asked to stop > /dev/console' TERM; while :; do sleep 1; done"]}
`

// TestSupervisorKilledStopping checks that, if a supervisor is killed while the active side stops,
// the next one lets the side go back to its work: a pair that says it is protected serves.
func TestSupervisorKilledStopping(t *testing.T) {
	tier.Full(t, "a supervisor that is killed while the active side stops")
	s := stand(t, marker, stubborn)
	s.up()
	s.shell("left", "while [ ! -s /srv/mark ]; do sleep 1; done")
	down := exec.Command(binary, "down", "test")
	if err := down.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(down.Process.Kill(), down.Wait()) })
	await(t, "stop of the service", programLimit, func() bool {
		return bytes.Contains(readFile(t, filepath.Join(dirs.Run("test"), "left.console.log")), []byte("Asked to stop"))
	})
	// The down would take the place of the supervisor, and go on.
	if err := errors.Join(unix.Kill(down.Process.Pid, unix.SIGSTOP), unix.Kill(s.supervisorPID(), unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	_ = errors.Join(down.Process.Kill(), down.Wait())
	if d, err := supervisor.OpenRunDir(dirs.Run("test")); err == nil {
		if !d.Record.Stopping {
			t.Error("it had stopped by then, or was never asked to")
		}
		d.Close()
	}
	s.up()
	s.state("protected")
	if got := s.says("left", "busybox grep -c started /srv/mark; ps | busybox grep -c '[A]sked'"); got != "2\n1" {
		t.Errorf("it was started, and runs, so many times: %q, want 2 and 1", got)
	}
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
	s.sound()
	if !t.Failed() {
		row(t, killed, "supervisor", "while the active side stops; then another one takes charge", "understudy up", "serves again")
	}
}

// late is a service whose port does not answer, if it was started by another kernel before,
// until it is told to; mark is a service after it.
const late = `  - {name: late, ready: 9, command: [sh, -c, "if [ -e /srv/was ]; then while [ ! -e /srv/go ]; do sleep 1; done; fi; touch /srv/was; exec httpd -f -p 9 -h /srv"]}
  - {name: mark, command: [sh, -c, "echo started >> /srv/mark; sleep 1000000"]}
`

// TestServiceNotReady checks that a service that does not come up in a takeover does not keep the
// others from being served, and that it is reported until it does.
func TestServiceNotReady(t *testing.T) {
	tier.Full(t, "a service that is waited for in vain")
	s := stand(t, marker, late)
	s.up()
	s.state("protected")
	s.shell("left", "while [ ! -s /srv/mark ]; do sleep 1; done")
	st := s.tookOver()
	troubled := func() bool {
		return strings.Contains(strings.Join(s.status().Troubles, "\n"), "service late is not ready")
	}
	if len(st.Takeover.Unready) != 1 || !troubled() {
		t.Errorf("not ready: %+v, status %+v", st.Takeover.Unready, s.status())
	}
	s.shell("right", "while [ $(grep -c started /srv/mark) != 2 ]; do sleep 1; done")
	s.state("protected")
	s.shell("right", "touch /srv/go")
	await(t, "end of the trouble", programLimit, func() bool { return !troubled() })
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
	s.sound()
}

// TestDiskReplaced renames the image of a disk, and puts something else in its place. The disk that
// the pair has open is taken over; the file that has its path now is left alone, and no side boots
// with it.
func TestDiskReplaced(t *testing.T) {
	tier.Full(t, "a disk whose path is another's")
	s := stand(t, marker, again)
	s.up()
	s.state("protected")
	s.shell("left", "while [ ! -e /srv/done-1 ]; do sleep 1; done")
	other := bytes.Repeat([]byte("other"), 1<<20)
	if err := errors.Join(os.Rename(s.image, s.image+".old"), os.WriteFile(s.image, other, 0o600)); err != nil {
		t.Fatal(err)
	}
	replaced := func() bool { return strings.Contains(strings.Join(s.status().Troubles, "\n"), "renamed or replaced") }
	await(t, "a word about it", programLimit, replaced)
	s.tookOver()
	if got := s.says("right", "seq 1 100000 | cmp - /srv/file-1 && echo same"); got != "same" {
		t.Errorf("what was in memory only: %q", got)
	}
	await(t, "an understudy that cannot boot", programLimit, func() bool { return strings.Contains(s.status().Error, "renamed or replaced") })
	if !bytes.Equal(readFile(t, s.image), other) {
		t.Error("the file that has its path was written to")
	}
	if err := os.Rename(s.image+".old", s.image); err != nil {
		t.Fatal(err)
	}
	s.state("protected")
	await(t, "the end of the trouble", programLimit, func() bool { return !replaced() })
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
	s.sound()
}

// TestReset checks that if the active kernel ends by itself, in one of the ways of reboot(2), without a
// sync, what is in memory only is brought over.
func TestReset(t *testing.T) {
	for name, how := range map[string]string{
		"reboot": "reboot -f", "poweroff": "poweroff -f", "halt": "halt -f",
	} {
		t.Run(name, func(t *testing.T) {
			tier.Full(t, "a kernel that is told to end")
			s := stand(t, marker, again)
			s.up()
			s.state("protected")
			s.shell("left", "while [ ! -e /srv/done-1 ]; do sleep 1; done")
			s.typed("left", how, how+"\r", how)
			await(t, "takeover", programLimit, func() bool { return s.status().Takeovers == 1 })
			st := s.state("protected")
			if st.Active != "right" || len(st.Takeover.Refused) > 0 {
				t.Errorf("%+v, last takeover %+v", st, st.Takeover)
			}
			if got := s.says("right", "seq 1 100000 | cmp - /srv/file-1 && echo same"); got != "same" {
				t.Errorf("what it had written: %q", got)
			}
			if _, err := understudy(t, "down"); err != nil {
				t.Error(err)
			}
			s.sound()
		})
	}
}

// TestUpPanics checks that a kernel that dies while the pair comes up is reported, and not waited for.
func TestUpPanics(t *testing.T) {
	for side, only := range map[string]string{"left": "[ -e /srv/there ]", "right": "[ ! -e /srv/there ]"} {
		t.Run(side, func(t *testing.T) {
			if side == "left" {
				tier.Full(t, "the active kernel dies while the pair comes up")
			}
			s := stand(t, marker, `  - {name: mark, ready: 9, command: [sh, -c, "`+only+` && echo c > /proc/sysrq-trigger; exec httpd -f -p 9 -h /srv"]}
`)
			if out, err := exec.Command("debugfs", "-w", "-R", "write /etc/hostname there", s.image).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			_, err := understudy(t, "up", "-d", "-f", s.file)
			if err == nil || !strings.Contains(err.Error(), "the kernel of partition "+side+" panicked") {
				t.Errorf("up: %v", err)
			}
			if atStake := err != nil && strings.Contains(err.Error(), "understudy recover test"); atStake != (side == "left") {
				t.Errorf("what is in the memory of the side that had the disk: %v", err)
			}
		})
	}
}

// TestUpHangs checks that an understudy whose kernel hangs while it boots is booted again.
func TestUpHangs(t *testing.T) {
	tier.Full(t, "a kernel that hangs while it boots")
	vm(t)
	module, dir, err := fault.Module("6.1-generic")
	if errors.As(err, new(fault.Unmet)) {
		tier.Lacks(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	image, modules, err := dirs.Kernel(dir)
	if err != nil {
		t.Fatal(err)
	}
	usual, _, err := dirs.Kernel("")
	if err != nil {
		t.Fatal(err)
	}
	place, err := os.MkdirTemp(filepath.Dir(module), "first") // a guest has a file system of its own on /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(place) })
	first := filepath.Join(place, "first.sh")
	s := stand(t, marker, again, "kernel: "+usual, "vcpus: 2, kernel: "+image,
		"initramfs: guest.cpio}\ndisks", "initramfs: guest.cpio, append: rdinit="+first+"}\ndisks")
	guest := filepath.Join(filepath.Dir(s.file), "guest.cpio")
	begins := func(with string) {
		t.Helper()
		if err := os.WriteFile(first, []byte("#!/bin/sh\n"+with+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := understudy(t, "initramfs", "-o", guest+".new", "--modules", modules, "--add", module, "--add", first); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(guest+".new", guest); err != nil {
			t.Fatal(err)
		}
	}
	begins("echo it hangs now; insmod " + module + " way=hang-all; sleep 1000000")
	up := make(chan error, 1)
	go func() {
		_, err := understudy(t, "up", "-d", "-f", s.file)
		up <- err
	}()
	await(t, "hang", programLimit, func() bool {
		b, _ := os.ReadFile(filepath.Join(dirs.Run("test"), "right.console.log")) // it may not be there yet
		return bytes.Contains(b, []byte("it hangs now"))
	})
	begins("exec /init")
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	s.state("protected")
	log := readFile(t, filepath.Join(dirs.Run("test"), "supervisor.log"))
	if !bytes.Contains(log, []byte("its kernel hung while it booted")) {
		t.Errorf("the log does not tell of the hang:\n%s", log)
	}
}

// TestActiveDiesUnwatched checks that the next supervisor sees what happened while there was none.
func TestActiveDiesUnwatched(t *testing.T) {
	tier.Full(t, "a death without a supervisor")
	for _, how := range []string{"panic", "end of its process"} {
		t.Run(how, func(t *testing.T) {
			s := stand(t, marker, again)
			s.up()
			s.wrote("left", 1)
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
			s.exact(1)
			if !t.Failed() {
				row(t, killed, "supervisor, then the active side: "+how, "at rest", "understudy up", "exact")
			}
		})
	}
}

// TestAllKilled checks that the pair that is left reports what is at stake, and that recover
// brings it to the disk; an up in between does not touch it.
func TestAllKilled(t *testing.T) {
	tier.Full(t, "supervisor and guests killed")
	s := stand(t, marker, writer)
	s.up()
	s.written()
	s.kill()
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

// TestTermination checks that every signal that a service manager or a terminal sends ends the pair in good order,
// even if its guests get it, too, and nobody reads its output, or nobody can any more.
func TestTermination(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			if sig != unix.SIGTERM {
				tier.Full(t, "another signal")
			}
			s := stand(t, marker, writer)
			cmd := exec.Command(binary, "up", "-f", s.file)
			out, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd.Stdout = in
			if sig == unix.SIGHUP { // like a terminal that was stopped
				fill(t, in)
			}
			if err := errors.Join(cmd.Start(), in.Close()); err != nil {
				t.Fatal(err)
			}
			s.state("protected")
			s.written()
			if sig != unix.SIGHUP {
				out.Close()
			}
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

// fill writes to a pipe until it takes no more.
func fill(t *testing.T, pipe *os.File) {
	t.Helper()
	fd, err := unix.Dup(int(pipe.Fd()))
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	for b := make([]byte, 4096); err == nil; {
		_, err = unix.Write(fd, b)
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	if err := errors.Join(unix.SetNonblock(fd, false), unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
}

// TestHeirDies checks that if the understudy dies while it takes over, at each point where
// the disk is in another state, the pair reports that the takeover failed, lets go of the
// disk, and recover brings everything to it.
func TestHeirDies(t *testing.T) {
	services := `  - {name: mark, ready: 80, command: [sh, -c, "echo started >> /srv/mark; %s; busybox httpd -p 80; sleep 1000000"]}
`
	// Only the understudy finds a file on its disk that makes it die: the first side is
	// started without it.
	die := `[ $(wc -l < /srv/mark) -lt 2 ] && { echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo precious > /srv/kept; } || echo c > /proc/sysrq-trigger`
	s := stand(t, marker, fmt.Sprintf(services, die), "services:", "takeover: {rehearse: false}\nservices:")
	s.up()
	s.written()
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	// The understudy dies before its service is ready.
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

// TestNoRoomIsNoDeath checks that a guest that QEMU has stopped, since the host has no room under
// a sparse image, is not dead: the pair reports that, waits, and continues once there is room.
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

// TestStoppedIsNotDead checks that a QEMU that was stopped or frozen from outside is not dead.
func TestStoppedIsNotDead(t *testing.T) {
	s := stand(t)
	s.up()
	stop := func(side string, held func(status) string) time.Duration {
		pid, began := s.qemuPID(side), time.Now()
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		await(t, "held "+side, programLimit, func() bool { return held(s.status()) != "" })
		stopped := time.Since(began)
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		await(t, side+" going on", programLimit, func() bool { return held(s.status()) == "" })
		return stopped
	}
	stop("right", func(st status) string { return st.UnderstudyHeld })
	stopped := stop("left", func(st status) string { return st.Held })
	time.Sleep(time.Second)
	if st := pairStatus(t); st.State != "protected" {
		t.Errorf("status %+v", st)
	}
	row(t, notDead, "SIGSTOP of the active side's QEMU", stopped.Round(time.Second), pairStatus(t).Takeovers)
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
}

// TestUnderstudyDies checks that the loss of the understudy is reported at once, that another one boots,
// and that nothing else ends. While none can boot, each attempt reports why, and a crash has to be forced.
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
