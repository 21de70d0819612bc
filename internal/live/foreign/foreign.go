// Package foreign deals with a QEMU that somebody else started: it stops the process, copies the
// machine's memory to a file, and names its disks, without QEMU's help and without a change to
// it. It ends the process only when asked to.
//
// # Caveats
//
// A machine whose memory is in several parts (one for each NUMA node, or plugged in later) is
// refused: QEMU's own dump-guest-memory knows where the parts are.
package foreign

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/partition"
)

// Machine is a process of QEMU.
type Machine struct {
	PID  int
	Name string // what -name says, or ""

	args   []string
	handle int  // of pidfd_open(2): the PID may become another process's
	froze  bool // we have stopped it
}

var errNotQEMU = errors.New("it is no QEMU that runs a machine")

// Open finds the QEMU with a PID. A QEMU that runs a partition of a pair is refused: its
// supervisor acts for it.
func Open(pid int) (*Machine, error) {
	m := &Machine{PID: pid}
	var err error
	if m.handle, err = unix.PidfdOpen(pid, 0); err != nil {
		return nil, hint.New(fmt.Sprintf("open process %d", pid), err, "Name a QEMU that is still there: pgrep -a qemu")
	}
	if err = m.look(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Machine) look() error {
	op := fmt.Sprintf("open process %d", m.PID)
	exe, err := os.Readlink(m.proc("exe"))
	if err != nil {
		return hint.New(op, err, "This needs the rights of root.")
	}
	base := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	base = strings.TrimPrefix(base, ".") // NixOS has QEMU behind a wrapper, as .qemu-system-x86_64-wrapped
	if !strings.HasPrefix(base, "qemu-system-") && base != "qemu-kvm" && base != "kvm" {
		return hint.New(op, fmt.Errorf("%w: %s", errNotQEMU, exe), "Name the process of the machine itself: pgrep -a qemu")
	}
	line, err := os.ReadFile(m.proc("cmdline"))
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if len(line) == 0 { // in the middle of execve(2), or ending
		return hint.New(op, errors.New("it has no command line"), "It is just starting or ending: try again.")
	}
	m.args = strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00")
	m.Name = nameOf(m.args)
	if strings.HasPrefix(m.Name, "understudy-") {
		return hint.New(op, fmt.Errorf("it runs a partition of a pair, %s", m.Name), "Its supervisor takes over, or understudy recover goes on.")
	}
	return nil
}

// nameOf is what -name says (qemu(1)): guest=NAME or NAME first, and more after a comma.
func nameOf(args []string) string {
	for i, a := range args[:max(0, len(args)-1)] {
		if a == "-name" || a == "--name" {
			first, _, _ := strings.Cut(args[i+1], ",")
			return strings.TrimPrefix(first, "guest=")
		}
	}
	return ""
}

func (m *Machine) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(m.PID), name)
}

// Close lets the process go on, if it still exists and we have stopped it.
func (m *Machine) Close() error {
	var err error
	if m.froze {
		if err = m.signal(unix.SIGCONT); errors.Is(err, unix.ESRCH) {
			err = nil
		}
	}
	return errors.Join(err, unix.Close(m.handle))
}

func (m *Machine) signal(s unix.Signal) error {
	return unix.PidfdSendSignal(m.handle, s, nil, 0)
}

// freezeLimit is how long threads may take to stop while they are in this machine's kernel,
// where they write to a disk.
const freezeLimit = 30 * time.Second

// Freeze stops the process, and returns when each of its threads has stopped: no byte of
// memory changes any more, and no request is in flight. Close lets the process go on.
func (m *Machine) Freeze() error {
	running, err := m.running()
	if err != nil || running == 0 {
		return err
	}
	if err := m.signal(unix.SIGSTOP); err != nil {
		return fmt.Errorf("stop process %d: %w", m.PID, err)
	}
	m.froze = true
	for end := time.Now().Add(freezeLimit); ; time.Sleep(time.Millisecond) {
		if running, err = m.running(); err != nil || running == 0 {
			return err
		}
		if time.Now().After(end) {
			return hint.New(fmt.Sprintf("stop process %d", m.PID), fmt.Errorf("%d of its threads have not stopped after %v", running, freezeLimit),
				"They may hang in the machine's kernel (state D in ps -L), in a request to a disk. Nothing was touched.")
		}
	}
}

// running counts the threads that are not stopped (proc(5), stat: the state follows the name,
// which is in parentheses and may contain parentheses itself).
func (m *Machine) running() (int, error) {
	tasks, err := filepath.Glob(m.proc("task/[0-9]*/stat"))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("look at process %d: it has ended", m.PID)
	}
	n := 0
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		if i := bytes.LastIndexByte(b, ')'); i < 0 || i+2 >= len(b) || b[i+2] != 'T' {
			n++
		}
	}
	return n, nil
}

// Started is when the process began, as in partition.Identity.
func (m *Machine) Started() (uint64, error) {
	started, err := partition.StartOf(m.PID)
	if err != nil {
		return 0, fmt.Errorf("look at process %d: %w", m.PID, err)
	}
	return started, nil
}

// End kills the process, and returns when it is gone.
func (m *Machine) End(limit time.Duration) error {
	return m.end(limit, "SIGKILL", "It may hang in the machine's kernel (state D in ps). Its disks are left as they are.", unix.SIGKILL)
}

// Quit lets QEMU write what it has of its images in its own memory, and end (SIGTERM; QEMU, system/runstate.c,
// qemu_system_killed). It returns when the process is gone. Its CPUs may run for a moment, unless they are stopped.
func (m *Machine) Quit(limit time.Duration) error {
	return m.end(limit, "SIGTERM", "It may have to write much, or wait for a disk that does not answer. Its disks are left as they are; when it has ended, go on with the memory that was kept.",
		unix.SIGTERM, unix.SIGCONT) // the second lets it take the first
}

func (m *Machine) end(limit time.Duration, how, advice string, signals ...unix.Signal) error {
	for _, s := range signals {
		if err := m.signal(s); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end process %d: %w", m.PID, err)
		}
	}
	m.froze = false
	fds := []unix.PollFd{{Fd: int32(m.handle), Events: unix.POLLIN}}
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(end).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("await the end of process %d: %w", m.PID, err)
		case n == 0:
			return hint.New(fmt.Sprintf("end process %d", m.PID), fmt.Errorf("it has not ended %v after %s", limit, how), advice)
		default:
			return nil
		}
	}
}
