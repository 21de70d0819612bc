package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/internal/live/events"
	"understudy.dev/understudy/internal/live/rootdisk"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/offline"
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
			return errors.New("it was ended before there was an understudy to take over")
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
		parts, err := rootdisk.Unclean(disk, offline.InBetween)
		if err != nil {
			return err
		}
		var errs []error
		for _, part := range parts {
			report, err := offline.Run(ctx, offline.Options{Image: memory, Disk: disk, Part: part, Work: work, GiveUp: true, Forget: true})
			if err == nil && !report.Complete {
				err = applyVerdict(report)
			}
			if err != nil && part != 0 {
				err = fmt.Errorf("partition %d: %w", part, err)
			}
			if err != nil && inBetween(disk, part, work) {
				err = fmt.Errorf("%w: %w", takeover.ErrInBetween, err)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
}

// inBetween reports whether a disk, or a partition of it, has a part of what is to be written to it.
func inBetween(disk string, part int, work string) bool {
	d, err := offline.Open(disk, part, work)
	if err != nil {
		return errors.Is(err, takeover.ErrInBetween)
	}
	_, unfinished := d.Unfinished()
	return d.Close() == nil && unfinished && !d.Other()
}
