package events

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Hook is a program that is run at events.
type Hook struct {
	Command []string // program, with its whole path, and arguments; no shell is involved
	On      []Kind   // empty: all
}

// hookLimit is how long a program may run. The next event waits for it; a takeover never does.
const hookLimit = 30 * time.Second

// maxSaid is how much of a program's output is reported if it fails, in bytes.
const maxSaid = 512

// Runner runs the hooks of a pair. Each hook gets the events one after the other, and no
// hook waits for the program of another.
type Runner struct {
	queues   []*queue
	failures atomic.Int64
	limit    time.Duration
}

// NewRunner makes a runner. failed is called for each run that failed, on another goroutine.
func NewRunner(hooks []Hook, failed func(error)) *Runner { return newRunner(hooks, hookLimit, failed) }

func newRunner(hooks []Hook, limit time.Duration, failed func(error)) *Runner {
	r := &Runner{limit: limit}
	for _, h := range hooks {
		r.queues = append(r.queues, newQueue(func(e Event) {
			if len(h.On) > 0 && !slices.Contains(h.On, e.Kind) {
				return
			}
			if err := h.run(e, r.limit); err != nil {
				r.failures.Add(1)
				failed(fmt.Errorf("hook %s at %s: %w", h.Command[0], e.Kind, err))
			}
		}))
	}
	return r
}

// Add makes the hooks run for an event. It does not wait for them.
func (r *Runner) Add(e Event) {
	for _, q := range r.queues {
		q.add(e)
	}
}

// Failures is how many runs have failed.
func (r *Runner) Failures() int64 { return r.failures.Load() }

// Close waits until the hooks have run for all events that were added, but not much longer than one run may take.
func (r *Runner) Close() error { return r.close(r.limit + closeLimit) }

// Leave is Close for a caller that must not be held up: it waits for at most closeLimit. A program that takes
// longer goes on by itself, and hooks that have not begun do not run.
func (r *Runner) Leave() error { return r.close(min(r.limit, closeLimit)) }

// close waits for all hooks together, for at most limit.
func (r *Runner) close(limit time.Duration) error {
	end := time.Now().Add(limit)
	var errs []error
	for i, q := range r.queues {
		if !q.close(time.Until(end)) {
			errs = append(errs, fmt.Errorf("hook %d has not ended within %v", i+1, limit))
		}
	}
	return errors.Join(errs...)
}

// run runs the program with the event as JSON on its standard input, and the main parts of
// the event in its environment. After limit, its whole process group is killed.
func (h Hook) run(e Event, limit time.Duration) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, fmt.Errorf("it was ended after %v", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Command[0], h.Command[1:]...)
	var said bytes.Buffer
	out := &limited{&said}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(b, '\n')), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for a process that has left the group and still holds the output
	cmd.Env = append(os.Environ(), "UNDERSTUDY_PAIR="+e.Pair, "UNDERSTUDY_EVENT="+string(e.Kind), "UNDERSTUDY_PAIR_STATE="+e.State,
		"UNDERSTUDY_ACTIVE="+e.Active, "UNDERSTUDY_CAUSE="+e.Cause, "UNDERSTUDY_DETAIL="+strings.ReplaceAll(e.Detail, "\x00", "?"))
	err = cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if text := strings.TrimSpace(said.String()); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// limited keeps the beginning of what is written.
type limited struct{ to *bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	l.to.Write(b[:min(len(b), max(0, maxSaid-l.to.Len()))])
	return len(b), nil
}
