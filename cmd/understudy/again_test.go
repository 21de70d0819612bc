package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// TestProtectedAgain checks a series of takeovers, after a crash and after a hang in turn, where the
// dead side of each is the understudy of the next. Nothing is lost, and no use of the machine grows.
func TestProtectedAgain(t *testing.T) {
	tier.Full(t, "takeovers in a row")
	const takeovers = 50
	s := stand(t, marker, again)
	s.up()
	var back []time.Duration
	var second, last usage // after each side has died once, and after the last takeover
	for n := 1; n <= takeovers; n++ {
		active, heir := "left", "right"
		if n%2 == 0 {
			active, heir = heir, active
		}
		s.wrote(active, n)
		s.calm()
		args := []string{"crash"}
		if n%4 > 1 {
			args = append(args, "--hang")
		}
		if _, err := understudy(t, args...); err != nil {
			t.Fatal(err)
		}
		await(t, "takeover", programLimit, func() bool { return s.status().Takeovers >= n })
		dead := time.Now()
		st := s.state("protected")
		back = append(back, st.Since.Sub(dead))
		if st.Active != heir || st.Understudy != active || len(st.Takeover.Refused) > 0 || st.Error != "" {
			t.Fatalf("status after takeover %d: %+v, last takeover: %+v", n, st, st.Takeover)
		}
		var now usage
		for range 10 { // a caller that asked for the status may not have hung up yet
			if now = s.usage(); n <= 2 || now.like(second) {
				break
			}
			time.Sleep(time.Second)
		}
		t.Logf("after takeover %d, protected again after %v: %+v", n, back[n-1].Round(time.Millisecond), now)
		last = now
		if n == 2 {
			second = now
		} else if n > 2 && !now.like(second) {
			t.Errorf("after takeover %d the pair has %+v, and had %+v after the second", n, now, second)
		}
	}
	slices.Sort(back)
	row(t, "Takeovers in a row", takeovers, "crash and hang, two and two", back[len(back)/2].Round(time.Millisecond), back[len(back)-1].Round(time.Millisecond),
		fmt.Sprintf("%+v", second), fmt.Sprintf("%+v", last))
	s.wrote([]string{"left", "right"}[takeovers%2], takeovers+1)
	if _, err := understudy(t, "down"); err != nil {
		t.Fatal(err)
	}
	s.sound()
	s.exact(takeovers + 1)
}

// usage is what a pair uses of the machine.
type usage struct {
	Files       int   // in its run directory
	Bytes       int64 // that these files take
	Descriptors int   // of the supervisor
	Guests      int
	Memory      int64 // anonymous memory of the supervisor, in bytes
}

func (u usage) like(was usage) bool {
	// One descriptor more or less belongs to a request or a report in progress; one more per takeover would be a leak.
	return u.Files == was.Files && u.Descriptors <= was.Descriptors+1 && u.Guests == was.Guests &&
		u.Bytes < was.Bytes+4<<20 && u.Memory < was.Memory+64<<20
}

func (s *standing) usage() usage {
	s.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", s.supervisorPID())
	count := func(pattern string) int {
		found, err := filepath.Glob(pattern)
		if err != nil {
			s.t.Fatal(err)
		}
		return len(found)
	}
	u := usage{Files: count(dirs.Run("test") + "/*"), Descriptors: count(proc + "fd/*")}
	out, err := exec.Command("du", "-s", "--block-size=1", dirs.Run("test")).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	fmt.Sscan(string(out), &u.Bytes)
	for _, side := range []string{"left", "right"} {
		if processWith(filepath.Join(dirs.Run("test"), side+".ram")) != 0 {
			u.Guests++
		}
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			fmt.Sscan(value, &u.Memory)
			u.Memory <<= 10
		}
	}
	return u
}

// TestSecondDeath checks that a side that dies before there is an understudy again is taken
// over from in any case, once an understudy has booted, and that nothing is lost.
func TestSecondDeath(t *testing.T) {
	tier.Full(t, "a second death")
	s := stand(t, marker, again)
	s.up()
	s.wrote("left", 1)
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	await(t, "takeover", programLimit, func() bool { return s.status().Takeovers >= 1 })
	if _, err := understudy(t, "crash", "--force"); err != nil {
		t.Fatal(err)
	}
	await(t, "takeover", programLimit, func() bool { return s.status().Takeovers >= 2 })
	if st := s.state("protected"); st.Active != "left" || len(st.Takeover.Refused) > 0 {
		t.Errorf("status after two deaths: %+v", st)
	}
	// The second may have died before its service began.
	s.shell("left", "while [ $(wc -l < /srv/mark) -lt 2 ] || [ ! -e /srv/done-$(wc -l < /srv/mark) ]; do sleep 1; done")
	if _, err := understudy(t, "down"); err != nil {
		t.Fatal(err)
	}
	s.sound()
	for _, n := range []int{1, strings.Count(s.read("/mark"), "\n")} { // the second may have been writing when it died
		if got := s.read(fmt.Sprintf("/file-%d", n)); got != againFile(n) {
			t.Errorf("file %d has %d bytes, or other ones than the %d that were written", n, len(got), len(againFile(n)))
		}
	}
	if !t.Failed() {
		row(t, killed, "active side, twice", "the second time before the understudy has booted", "by itself", "exact")
	}
}

// TestFrozenUnwatched checks that a side that hung while there was no understudy, and was stopped until
// there is one, is also taken over from by another supervisor. A down in between leaves it as it is.
func TestFrozenUnwatched(t *testing.T) {
	tier.Full(t, "a supervisor killed while a hung side is stopped")
	s := stand(t, marker, again)
	s.up()
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	await(t, "takeover", programLimit, func() bool { return s.status().Takeovers >= 1 })
	pid := s.supervisorPID()
	if _, err := understudy(t, "crash", "--hang", "--force"); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(dirs.Run("test"), "record.json")
	await(t, "stop of the hung side", programLimit, func() bool { return bytes.Contains(readFile(t, record), []byte(`"frozen": "right"`)) })
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "end of the supervisor", programLimit, func() bool { return processWith("up\x00-f\x00"+s.file) == 0 })
	right := s.qemuPID("right")
	if _, err := understudy(t, "down", "test"); err == nil || !strings.Contains(err.Error(), "cannot stop in good order") {
		t.Errorf("down: %v", err)
	}
	if s.qemuPID("right") != right {
		t.Error("down has ended it")
	}
	s.up()
	await(t, "takeover", programLimit, func() bool { return s.status().Takeovers >= 1 })
	if st := s.state("protected"); st.Active != "left" || len(st.Takeover.Refused) > 0 {
		t.Errorf("status %+v", st)
	}
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
	s.sound()
	if !t.Failed() {
		row(t, killed, "supervisor, after an active side that hung", "before an understudy has booted", "understudy up", "exact")
	}
}

// TestRootRescued checks that what a dead side had not written to its own root disk is
// there when it boots again. This also holds if the supervisor is killed before that: the
// next one removes nothing of which it does not know that it is durable.
func TestRootRescued(t *testing.T) {
	tier.Full(t, "a root disk")
	nothing := func(*standing, int) (kept bool) { return false }
	t.Run("at rest", func(t *testing.T) { rootRescued(t, emptyRoot(t), "", nothing) })
	t.Run("block device", func(t *testing.T) { rootRescued(t, loopDevice(t, emptyRoot(t)), "", nothing) })
	t.Run("partition of a block device", func(t *testing.T) { rootRescued(t, loopDevice(t, emptyRoot(t)), "1", nothing) })
	t.Run("supervisor killed", func(t *testing.T) {
		rootRescued(t, emptyRoot(t), "", func(s *standing, pid int) (kept bool) {
			path := filepath.Join(dirs.Run("test"), "record.json")
			await(t, "end of the takeover", programLimit, func() bool { return bytes.Contains(readFile(t, path), []byte(`"dead"`)) })
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			var r supervisor.Record
			if err := json.Unmarshal(readFile(t, path), &r); err != nil || r.Dead == nil || r.Dead.Root == "" {
				t.Fatalf("the dead side was buried by then: %v, %+v", err, r.Dead)
			}
			s.up()
			return r.Dead.Why != ""
		})
	})
}

// TestRootRecovered checks that, if all of a pair was killed, recover also brings to a root disk what was in
// memory only.
func TestRootRecovered(t *testing.T) {
	tier.Full(t, "a root disk")
	root := emptyRoot(t)
	mkfs(t, root)
	s := stand(t, marker, again, "left: {", "left: {root: "+root+", ")
	s.up()
	s.shell("left", ownRoot("")+"; while [ ! -e /srv/done-1 ]; do sleep 1; done")
	s.kill()
	s.recover()
	s.sound()
	s.image = root
	s.sound()
	if got := s.read("/log"); got != againFile(1) {
		t.Errorf("the file on the root disk has %d bytes, or other ones than the %d that were written", len(got), len(againFile(1)))
	}
	if !t.Failed() {
		row(t, killed, "supervisor and both guests, with unsaved data on a root disk", "at rest", "understudy recover", "exact")
	}
}

// ownRoot returns a command line that mounts a side's root disk, or a partition of it, and leaves a file there in
// memory only.
func ownRoot(part string) string {
	return "mkdir /own && mount -t ext4 $(grep -l root /sys/block/*/serial | busybox sed 's:/sys/block/:/dev/:; s:/serial::')" + part + " /own && seq 1 100000 > /own/log"
}

// emptyRoot makes an image with nothing on it.
func emptyRoot(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root.img")
	if err := errors.Join(os.WriteFile(root, nil, 0o600), os.Truncate(root, 64<<20)); err != nil {
		t.Fatal(err)
	}
	return root
}

// loopDevice makes a block device of an image.
func loopDevice(t *testing.T, image string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("losetup: %v: no loop devices here", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { checked(t, "losetup", "-d", device) })
	return device
}

// rootRescued lets the active side die, and then calls befall to do something to the pair and
// its supervisor. befall returns whether the dead side's memory is to be kept. The root disk
// has its file system in partition part, or is not partitioned if that is empty.
func rootRescued(t *testing.T, root, part string, befall func(s *standing, pid int) (kept bool)) {
	t.Helper()
	at := root
	if part == "" {
		mkfs(t, root)
	} else {
		checked(t, "sh", "-c", "echo start=2048 | sfdisk -q --label dos "+root)
		mkfs(t, "-E", "offset=1048576", root, "62M")
		at += "?offset=1048576"
	}
	s := stand(t, marker, again, "left: {", "left: {root: "+root+", ")
	s.up()
	s.shell("left", ownRoot(part)+"; while [ ! -e /srv/done-1 ]; do sleep 1; done")
	pid := s.supervisorPID()
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	kept := befall(s, pid)
	await(t, "takeover", programLimit, func() bool { return s.status().Active == "right" })
	s.state("protected")
	_, err := understudy(t, "down")
	if kept && (err == nil || !strings.Contains(err.Error(), "kept-1-left.ram is kept: ")) || !kept && err != nil {
		t.Fatalf("kept: %v; down: %v", kept, err)
	}
	s.sound()
	if strings.HasPrefix(root, "/dev/") { // nothing is left beside the device, nor of its work directory
		for _, dir := range []string{root + "*.part*", filepath.Join(dirs.State("test"), "*.understudy")} {
			if left, err := filepath.Glob(dir); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		}
	}
	s.image = at
	s.sound()
	if got := s.read("/log"); got != againFile(1) {
		t.Errorf("the file on the root disk has %d bytes, or other ones than the %d that were written", len(got), len(againFile(1)))
	}
	if !t.Failed() {
		row(t, killed, "active side with unsaved data on its own root disk", t.Name()[len("TestRootRescued/"):], "by itself", "exact")
	}
}
