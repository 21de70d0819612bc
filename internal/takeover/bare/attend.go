package bare

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/children"
	"understudy.dev/understudy/internal/live/unit"
)

// Limits of a service that forks: until its process is there, until the commands that stop it have ended, and
// until the service itself has ended after them. The last two are over before serviceStop.
const (
	forkLimit    = 90 * time.Second // as systemd's DefaultTimeoutStartSec=
	commandLimit = 20 * time.Second
	leaveLimit   = 5 * time.Second
)

// attendant stays with a service whose command ends, and leaves it running (Type=forking).
type attendant struct {
	unit *unit.Unit
	id   identity
	env  []string
	kids *children.Children
	main int // the service's process; 0: all that its command has left behind
}

// attend starts a service that forks. It returns nil when it was told to end (SIGTERM) and the service has
// ended, or the reason why the service ended before that. No process of the service is left then.
func attend(u *unit.Unit, id identity, env []string) error {
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGTERM)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper of its processes: %w", err)
	}
	a := &attendant{unit: u, id: id, env: env, kids: children.New()}
	go a.kids.Reap()
	defer a.kill()
	if err := a.kids.Run(id.command(context.Background(), u.Main, env)); err != nil && !u.Main.Ignore {
		return fmt.Errorf("%s: %w", strings.Join(u.Main.Words, " "), err)
	}
	if err := a.find(told); err != nil {
		return err
	}
	for {
		select {
		case <-told:
			a.stop()
			return nil
		case <-time.After(100 * time.Millisecond):
			if !a.lives() {
				return errors.New("its process has ended")
			}
		}
	}
}

// find waits until the service's PID file names its process.
func (a *attendant) find(told chan os.Signal) error {
	if a.unit.PIDFile == "" {
		return nil
	}
	for end := time.Now().Add(forkLimit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if a.look() {
			return nil
		}
		if len(told) > 0 {
			return errors.New("it was told to end (SIGTERM) before its PID file named its process")
		}
	}
	return fmt.Errorf("PID file %s names none of its processes after %v", a.unit.PIDFile, forkLimit)
}

// look reads which of the service's processes its PID file names, and says whether it names one.
func (a *attendant) look() bool {
	pid := readPID(a.unit.PIDFile)
	if !slices.Contains(children.Descendants(os.Getpid()), pid) {
		return false
	}
	a.main = pid
	return true
}

// readPID returns the process number that a file has, or 0 if it has none.
func readPID(path string) int {
	b, err := os.ReadFile(path)
	if err != nil || len(b) > 32 {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// lives says whether the service lives. It may have replaced its process by another one.
func (a *attendant) lives() bool {
	if a.main == 0 {
		return children.Left()
	}
	return !errors.Is(unix.Kill(a.main, 0), unix.ESRCH) || a.look()
}

// stop makes the service end.
func (a *attendant) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	env := append(slices.Clone(a.env), "MAINPID="+strconv.Itoa(a.main))
	for _, c := range a.unit.Stop {
		if err := a.kids.Run(a.id.command(ctx, c, env)); err != nil && !c.Ignore {
			say("%s: %s: %v", a.unit.Name, strings.Join(c.Words, " "), err)
		}
	}
	to := children.Descendants(os.Getpid())
	if slices.Contains(to, a.main) {
		to = []int{a.main}
	}
	for _, pid := range to {
		_ = unix.Kill(pid, unix.SIGTERM) // it may be gone
	}
	for end := time.Now().Add(leaveLimit); time.Now().Before(end) && len(children.Descendants(os.Getpid())) > 0; {
		time.Sleep(20 * time.Millisecond)
	}
}

// kill kills what is still there.
func (a *attendant) kill() {
	for end := time.Now().Add(leaveLimit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left := children.Descendants(os.Getpid())
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
