package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"sync"
	"syscall"
	"time"
)

// errGone is the error of every request on a connection that has
// ended: the process exited or closed its monitor, or Close was called. The
// end of a context is another error.
var errGone = errors.New("qmp connection gone")

// errEventsLost is the error for a reader of events that fell so far behind
// that events were dropped before it saw them.
var errEventsLost = errors.New("qmp events lost: reader too slow")

const (
	maxEvents   = 4096                 // events kept for readers that are behind
	dialBackoff = 2 * time.Millisecond // between two attempts to reach a socket that is not there yet
)

// Client is a connection to one QEMU monitor. Its methods may be called from
// any goroutine.
type Client struct {
	conn    net.Conn
	writing chan struct{} // holds one token: its holder may write to conn

	mu      sync.Mutex
	nextID  uint64
	waiting map[uint64]chan reply // by id; each has room for its reply
	events  []Event               // the newest, at most maxEvents
	dropped int                   // events that came before events[0]
	changed chan struct{}         // closed and replaced when an event comes, closed for good at the end
	err     error                 // why the connection ended, if it has; wraps errGone
}

// Dial connects to the monitor at a Unix socket, trying again until ctx ends
// while the socket is not there yet, and goes through the greeting.
func Dial(ctx context.Context, path string) (*Client, error) {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return New(ctx, conn)
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("dial qmp: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial qmp: %w (last: %w)", context.Cause(ctx), err)
		case <-time.After(dialBackoff):
		}
	}
}

// New goes through the greeting on a connection to a monitor, which the
// client owns from then on, even if New fails.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{
		conn:    conn,
		writing: make(chan struct{}, 1),
		waiting: make(map[uint64]chan reply),
		changed: make(chan struct{}),
	}
	lines := newLineReader(conn)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	line, err := lines.next()
	if !stop() {
		err = fmt.Errorf("%w (is another client connected? a monitor serves one)", context.Cause(ctx))
	}
	var m message
	if err == nil {
		m, err = decodeMessage(line)
	}
	if err == nil && !m.greeting {
		err = fmt.Errorf("not a greeting: %.80q", line)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet qmp: %w", err)
	}
	go c.read(lines)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection. The process goes on.
func (c *Client) Close() error {
	c.fail(errors.New("closed by us"))
	return nil
}

// Err returns why the connection ended, or nil if it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Execute sends a command and waits for its answer, which it stores in result
// unless that is nil. args becomes a JSON object, or is nil. The error is an
// *Error if the server refused, wraps ctx's if that ended first, and wraps
// errGone if the connection ended.
func (c *Client) Execute(ctx context.Context, verb string, args, result any) error {
	id, answer, err := c.register()
	if err != nil {
		return fmt.Errorf("qmp %s: %w", verb, err)
	}
	defer c.forget(id)
	line, err := encodeCommand(id, verb, args)
	if err != nil {
		return err
	}
	if err := c.write(ctx, line); err != nil {
		return fmt.Errorf("qmp %s: %w", verb, err)
	}
	var r reply
	var ok bool
	select {
	case r, ok = <-answer:
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", verb, context.Cause(ctx))
	}
	switch {
	case !ok:
		return fmt.Errorf("qmp %s: %w", verb, c.Err())
	case r.err != nil:
		r.err.Command = verb
		return r.err
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(r.value, result); err != nil {
		return fmt.Errorf("qmp %s: decode answer: %w", verb, err)
	}
	return nil
}

// register reserves an id for a command. The channel gets the answer, or is
// closed when the connection ends.
func (c *Client) register() (uint64, <-chan reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.nextID++
	answer := make(chan reply, 1)
	c.waiting[c.nextID] = answer
	return c.nextID, answer, nil
}

// forget gives up an id: nobody waits for its answer any more.
func (c *Client) forget(id uint64) {
	c.mu.Lock()
	delete(c.waiting, id)
	c.mu.Unlock()
}

// write sends one whole line. If ctx ends in the middle of it the connection
// is unusable and ends too; if ctx ends before, nothing was sent.
func (c *Client) write(ctx context.Context, line []byte) error {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_ = c.conn.SetWriteDeadline(time.Time{}) // a connection that has ended fails the write
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	n, err := c.conn.Write(line)
	if !stop() {
		<-interrupted // so that the deadline is not set under the next writer
		if n == 0 && err != nil {
			return context.Cause(ctx)
		}
	}
	if err != nil {
		c.fail(fmt.Errorf("send command: %w", err))
		return c.Err()
	}
	return nil
}

// read takes in messages until the connection ends.
func (c *Client) read(lines *lineReader) {
	for {
		line, err := lines.next()
		if err != nil {
			c.fail(err)
			return
		}
		m, err := decodeMessage(line)
		switch {
		case err != nil:
			c.fail(err)
			return
		case m.event != nil:
			c.keep(*m.event)
		case m.reply != nil && m.reply.hasID:
			c.deliver(*m.reply)
		default: // a second greeting, or a command that the server could not read
			c.fail(fmt.Errorf("unexpected message: %.80q", line))
			return
		}
	}
}

// deliver hands an answer to the command that waits for it. If no command does, it is
// the late answer to one that was given up.
func (c *Client) deliver(r reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if answer, ok := c.waiting[r.id]; ok {
		answer <- r
		delete(c.waiting, r.id)
	}
}

// keep stores an event for all readers, dropping the oldest if there are too many.
func (c *Client) keep(e Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.events) == maxEvents {
		c.events = append(c.events[:0], c.events[maxEvents/2:]...)
		c.dropped += maxEvents / 2
	}
	e.Came = time.Now()
	c.events = append(c.events, e)
	if c.err == nil {
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// fail ends the connection. The first reason counts.
func (c *Client) fail(reason error) {
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("%w: %w", errGone, reason)
	for id, answer := range c.waiting {
		close(answer)
		delete(c.waiting, id)
	}
	close(c.changed)
}

// Events yields the events that are kept (all since the connection began, or at least
// the newest maxEvents/2), and then each new one as it comes; any number of
// readers each see all of them. The last pair carries an error: ctx's, one that wraps
// errGone after the last event of a connection that ended, or errEventsLost. A slow
// reader holds up nobody else.
func (c *Client) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		c.mu.Lock()
		next := c.dropped // counted from the beginning of the connection
		c.mu.Unlock()
		for {
			c.mu.Lock()
			lost := next < c.dropped
			var batch []Event
			if !lost {
				batch = append(batch, c.events[next-c.dropped:]...)
			}
			changed, gone := c.changed, c.err
			c.mu.Unlock()
			if lost {
				yield(Event{}, errEventsLost)
				return
			}
			for _, e := range batch {
				if !yield(e, nil) {
					return
				}
			}
			next += len(batch)
			if gone != nil {
				yield(Event{}, gone)
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				yield(Event{}, context.Cause(ctx))
				return
			}
		}
	}
}
