package partition

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/children"
	"understudy.dev/understudy/internal/live/hint"
)

// Identity tells a process from a later one with the same number.
type Identity struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"` // in clock ticks after this machine's boot (proc(5), stat, field 22)
}

// Identity returns the identity of the partition's process.
func (p *Process) Identity() (Identity, error) {
	started, err := StartOf(p.PID())
	return Identity{p.PID(), started}, err
}

// StartOf reads when a process began, as Identity has it.
func StartOf(pid int) (uint64, error) {
	const before = 19 // fields between the name's parenthesis and this one
	fields, err := children.Stat(pid)
	if err != nil {
		return 0, err
	}
	if len(fields) <= before {
		return 0, fmt.Errorf("read start of process %d: %q", pid, fields)
	}
	return strconv.ParseUint(fields[before], 10, 64)
}

// stateOf returns the state of a process; empty if there is no such process.
func stateOf(pid int) string {
	fields, _ := children.Stat(pid)
	return append(fields, "")[0]
}

// stateStopped is the state of a process whose threads were all stopped by a signal (proc(5), stat,
// field 3).
const stateStopped = "T"

// ErrStopped is why a partition is not reconnected to: its process is stopped, and answers nothing.
var ErrStopped = errors.New("it is stopped (SIGSTOP)")

// ErrGone is why a partition is not reconnected to: its process has ended.
var ErrGone = errors.New("it has ended")

// Reconnect takes charge of a running partition that was started by another process, which has
// since ended. With ErrGone the returned Process has ended, but its memory is still there.
func Reconnect(ctx context.Context, spec Spec, id Identity) (*Process, error) {
	p := &Process{Spec: spec, pid: id.PID, ended: make(chan struct{}), status: errors.New("exit status unknown")}
	fd, err := unix.PidfdOpen(id.PID, 0)
	// The start time is read only now that the number cannot pass to another process any more.
	if started, startErr := StartOf(id.PID); err != nil || startErr != nil || started != id.Started {
		if err == nil {
			unix.Close(fd)
		}
		close(p.ended)
		return p, fmt.Errorf("reconnect to partition %s: process %d: %w", spec.Name, id.PID, ErrGone)
	}
	p.signal = func(s unix.Signal) error { return unix.PidfdSendSignal(fd, s, nil, 0) }
	go func() {
		defer close(p.ended) // the descriptor stays open, since a signal may be about to be sent over it
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	if stateOf(id.PID) == stateStopped {
		return p, hint.New("reconnect to partition "+spec.Name, fmt.Errorf("process %d: %w", id.PID, ErrStopped),
			fmt.Sprintf("Let it go on, and run this again: kill -CONT %d", id.PID))
	}
	if err := p.bringUp(ctx); err != nil {
		select {
		case <-p.ended:
			err = ErrGone
		default:
		}
		return p, fmt.Errorf("reconnect to partition %s: %w", spec.Name, err)
	}
	return p, nil
}
