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

// protection is the work of getting a pair protected again. Its ctx ends when the pair is
// protected, when guard is woken, or when the ctx that protect was given does.
type protection struct {
	ctx  context.Context
	end  context.CancelFunc
	done chan struct{}
	last chan error // of the attempts that failed; at most one waits to be read
}

// protect gets the pair protected in the background, unless it is protected.
func (c *control) protect(ctx context.Context, out io.Writer) *protection {
	p := &protection{done: make(chan struct{}), last: make(chan error, 1)}
	p.ctx, p.end = context.WithCancel(ctx)
	c.mu.Lock()
	c.wake = p.end
	ordered := c.order != nil
	c.mu.Unlock()
	if _, understudy := c.s.Sides(); understudy.Name != "" {
		close(p.done)
		if ordered { // it was asked for while there was nobody to wake
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
		_ = c.s.Protect(working, func(err error) { // it ends with its ctx, or succeeds
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

// stop ends the attempts, and waits until they have ended.
func (p *protection) stop() {
	p.end()
	<-p.done
}

// failures is how many attempts to get an understudy may fail, while the active side is
// dead, before we give up.
const failures = 3

// await waits until there is an understudy that can take over from a dead side. freeze
// keeps the dead side as it is meanwhile.
func (p *protection) await(ctx context.Context, freeze func()) error {
	defer p.end()
	select {
	case <-p.done:
		return nil
	default:
	}
	select {
	case <-p.last: // an error from when the side was alive
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

// rescueRoot returns a function that brings to a pair's root disk the data that only its
// partition's memory has.
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
			if why = fmt.Errorf("%w: %w", supervisor.ErrPartly, why); !r.Whole() {
				why = fmt.Errorf("%s: %w", r.Where.Name(), why)
			}
			err = errors.Join(err, why)
		}
		return err
	}
}

// settle returns a function that finishes interrupted commits to a disk of a pair, and reports
// that.
func settle(pair string, log io.Writer) func(ctx context.Context, disk string) error {
	return func(ctx context.Context, disk string) error {
		work, err := offline.WorkOf(pair, disk)
		if err != nil {
			return err
		}
		reports, err := offline.Settle(ctx, disk, work, offline.Source{Raw: true})
		for _, r := range reports {
			err = errors.Join(err, writeApplied(log, r))
			if why := applyVerdict(r); why != nil { // the memory that might have had more is gone
				fmt.Fprintf(log, "disk %s: %v\n", disk, why)
			}
		}
		return err
	}
}
