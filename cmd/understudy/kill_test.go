package main

import (
	"context"
	"fmt"
	"io"
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
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// Environment variables that make this test binary a supervisor whose takeover is
// interrupted: the path of pair.yaml, how far a disk must have come, and who is killed then.
const (
	victimFile  = "UNDERSTUDY_TEST_PAIR"
	victimPoint = "UNDERSTUDY_TEST_POINT"
	victimWho   = "UNDERSTUDY_TEST_WHO"
)

func TestMain(m *testing.M) {
	fault.Child()
	if file := os.Getenv(victimFile); file != "" {
		if err := breakOff(file, takeover.Progress(os.Getenv(victimPoint)), os.Getenv(victimWho)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(runTests(m))
}

// runTests runs the tests with a run directory for all those that have none of their own. They
// must leave it empty.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "us-")
	if err == nil {
		err = os.Setenv("UNDERSTUDY_RUN", dir)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	before := leftovers(dir)
	status := m.Run()
	if left := newLeftovers(dir, before); len(left) > 0 {
		fmt.Printf("left behind: %s\n", strings.Join(left, ", "))
		return 1
	}
	return status
}

// killed is the section of deaths that do not only hit the active kernel.
const killed = "Killed"

const noUnderstudy = "there is no understudy to be killed"

// breakOff brings a pair up, waits for a line on its input, kills the active kernel, and,
// when the takeover has come that far, the processes that who names.
func breakOff(file string, point takeover.Progress, who string) error {
	p, err := pair.Load(file)
	if err != nil {
		return err
	}
	ctx := context.Background()
	s, err := supervisor.Start(ctx, p, supervisor.Options{
		Dir: dirs.Run(p.Name), Log: io.Discard,
		Progress: func(_ string, now takeover.Progress) {
			if now != point {
				return
			}
			if who != "supervisor" {
				pid := processWith("mem-path=" + dirs.Run(p.Name) + "/right.ram")
				if pid == 0 { // 0 would be everybody in our process group
					fmt.Println(noUnderstudy)
				} else if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					fmt.Println("kill the understudy:", err)
				}
			}
			if who != "understudy" {
				unix.Kill(os.Getpid(), unix.SIGKILL)
			}
		},
	})
	if err != nil {
		return err
	}
	fmt.Println("up")
	if _, err := fmt.Scanln(new(string)); err != nil {
		return err
	}
	if err := s.Crash(false); err != nil {
		return err
	}
	d, err := s.Watch(ctx)
	if err != nil {
		return err
	}
	_, err = s.TakeOver(ctx, d.Verdict)
	fmt.Println("takeover:", err)
	fmt.Println("close:", s.Close())
	return nil
}

// unsaved is a service that leaves in memory only: a new file of several pages, an old file
// that has become longer, and one that was renamed.
const unsaved = `  - {name: mark, command: [sh, -c, "` +
	`echo 0 > /proc/sys/vm/dirty_writeback_centisecs; echo 360000 > /proc/sys/vm/dirty_expire_centisecs; ` +
	`if [ ! -e /srv/there ]; then echo before > /srv/there; echo moved > /srv/old; sync; ` +
	`i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done > /srv/lines; echo after >> /srv/there; mv /srv/old /srv/new; echo precious > /srv/kept; fi; ` +
	`echo started >> /srv/mark; sleep 1000000"]}
`

// TestBrokenOff kills the supervisor, the understudy, or both at each point at which
// another memory begins to count, and checks that recover brings to the disk what was in
// memory.
func TestBrokenOff(t *testing.T) {
	var lines strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&lines, "line %d\n", i)
	}
	for _, point := range []takeover.Progress{takeover.Fenced, takeover.HandedOver, takeover.Applied} {
		for _, who := range []string{"supervisor", "understudy", "both"} {
			t.Run(string(point)+" "+who, func(t *testing.T) {
				if point != takeover.HandedOver || who != "both" {
					tier.Full(t, "killed when it is "+string(point)+": "+who)
				}
				s := stand(t, marker, unsaved, "image: data.img", "options: commit=3600, image: data.img")
				s.brokenOff(point, who, s.written)
				s.recover()
				s.sound()
				for path, want := range map[string]string{
					"/kept": "precious\n", "/there": "before\nafter\n", "/new": "moved\n", "/old": "", "/lines": lines.String(),
				} {
					if got := s.read(path); got != want {
						t.Errorf("%s has %d bytes, want %d: %.60q", path, len(got), len(want), got)
					}
				}
				if !t.Failed() {
					row(t, killed, who, "when a disk is recorded as "+string(point), "understudy recover", "exact")
				}
			})
		}
	}
}

// TestRefusedAndBrokenOff checks a takeover whose last commit is refused, since the dead kernel had
// aborted its journal, and whose understudy then dies, too, before it has mounted the disk. What was
// refused stays in memory: recover reports it, and removes nothing.
func TestRefusedAndBrokenOff(t *testing.T) {
	tier.Full(t, "a takeover that has refused something is broken off")
	s := stand(t, marker, unsaved, "image: data.img", `options: "commit=3600,errors=remount-ro", image: data.img`)
	s.brokenOff(takeover.Given, "understudy", func() {
		s.written()
		s.shell("left", "d=$(busybox awk '$2 == \"/srv\" {print $1}' /proc/mounts); echo 1 > /sys/fs/ext4/${d##*/}/trigger_fs_error; while busybox touch /srv/x; do sleep 1; done")
	})
	for range 2 {
		out, err := understudy(t, "recover", "test")
		if err == nil || !strings.Contains(out+err.Error(), "aborted") {
			t.Errorf("%v: %s", err, out)
		}
		if _, err := os.Stat(filepath.Join(dirs.Run("test"), "left.ram")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := understudy(t, "down", "--discard", "test"); err != nil {
		t.Error(err)
	}
	if !t.Failed() {
		row(t, killed, "understudy", "before the mount, after the last commit was refused", "understudy recover", "kept, and named")
	}
}

// brokenOff brings the pair up, calls work, and lets the active kernel die. The takeover is
// interrupted at a point by the death of the processes that who names.
func (s *standing) brokenOff(point takeover.Progress, who string, work func()) {
	s.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimFile+"="+s.file, victimPoint+"="+string(point), victimWho+"="+who)
	go_, err := cmd.StdinPipe()
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
	await(s.t, "protected pair", programLimit, func() bool {
		select {
		case err := <-ended:
			s.t.Fatalf("it ended with %v and said: %s", err, said.String())
		default:
		}
		return strings.Contains(said.String(), "up\n")
	})
	work()
	fmt.Fprintln(go_, "crash")
	select {
	case err := <-ended:
		s.t.Logf("it ended with %v and said: %s", err, said.String())
	case <-time.After(programLimit):
		cmd.Process.Kill()
		s.t.Fatalf("the takeover did not end; it said: %s", said.String())
	}
	if strings.Contains(said.String(), noUnderstudy) {
		s.t.Error("nobody was killed")
	}
}
