package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/internal/live/events"
	"understudy.dev/understudy/internal/takeover/offline"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// protection is a pair's way back to being protected. Its ctx ends once it is, when guard
// is woken, or with the ctx that it was made of.
type protection struct {
	ctx  context.Context
	end  context.CancelFunc
	done chan struct{}
	last chan error // of the attempts that failed; at most one waits to be read
}

// protect has the pair protected in the background, unless it is.
func (c *control) protect(ctx context.Context, out io.Writer) *protection {
	p := &protection{done: make(chan struct{}), last: make(chan error, 1)}
	p.ctx, p.end = context.WithCancel(ctx)
	c.mu.Lock()
	c.wake = p.end
	ordered := c.order != nil
	c.mu.Unlock()
	if _, understudy := c.s.Sides(); understudy.Name != "" {
		close(p.done)
		if ordered { // while nobody was to be woken
			p.end()
		}
		return p
	}
	working, cancel := context.WithCancel(ctx)
	end := p.end
	p.end = func() { cancel(); end() }
	go func() {
		defer end()
		defer close(p.done)
		_ = c.s.Protect(working, func(err error) { // it ends with its context, or well
			err = fmt.Errorf("protect the pair again: %w", err)
			c.answerOrder(nil, err)
			c.note(err)
			fmt.Fprintln(out, err)
			c.tell(events.Error, "", err.Error(), nil)
			select {
			case p.last <- err:
			default:
			}
		})
	}()
	return p
}

// stop ends the attempts and waits for their end.
func (p *protection) stop() {
	p.end()
	<-p.done
}

// failures are how many attempts to get an understudy may fail, while the active side is
// dead, before that is the end of it.
const failures = 3

// await waits until there is an understudy, for the takeover from a side that is dead.
// freeze keeps that as it is meanwhile.
func (p *protection) await(ctx context.Context, freeze func()) error {
	defer p.end()
	select {
	case <-p.done:
		return nil
	default:
	}
	select {
	case <-p.last: // while that side lived
	default:
	}
	freeze()
	for n := 0; ; {
		select {
		case <-p.done:
			return nil
		case err := <-p.last:
			if n++; n == failures {
				p.stop()
				return fmt.Errorf("no understudy came up to take over: %w", err)
			}
		case <-ctx.Done():
			p.stop()
			return errors.New("the supervisor was ended before there was an understudy to take over")
		}
	}
}

// rescueRoot returns what brings to a root disk of a pair's what only its partition's memory
// has of it.
func rescueRoot(pair string) func(ctx context.Context, disk, memory string) error {
	return func(ctx context.Context, disk, memory string) error {
		work, err := offline.WorkOf(pair, disk)
		if err != nil {
			return err
		}
		reports, err := offline.RescueRoot(ctx, offline.Options{Image: memory, Disk: disk, Work: work, GiveUp: true, Forget: true})
		for _, r := range reports {
			why := applyVerdict(r)
			if why == nil {
				continue
			}
			if why = fmt.Errorf("%w: %w", supervisor.ErrPartly, why); r.Part != 0 {
				why = fmt.Errorf("partition %d: %w", r.Part, why)
			}
			err = errors.Join(err, why)
		}
		return err
	}
}

// settle returns what finishes what was broken off while it was written to a disk of a pair's, and
// says so.
func settle(pair string, log io.Writer) func(ctx context.Context, disk string) error {
	return func(ctx context.Context, disk string) error {
		work, err := offline.WorkOf(pair, disk)
		if err != nil {
			return err
		}
		reports, err := offline.Settle(ctx, disk, work)
		for _, r := range reports {
			err = errors.Join(err, writeApplied(log, r))
			if why := applyVerdict(r); why != nil { // its memory is gone, whatever it had
				fmt.Fprintf(log, "disk %s: %v\n", disk, why)
			}
		}
		return err
	}
}
