// Package wire lets a supervisor and the agent inside a partition, or the
// command line and a supervisor, call each other over one byte stream.
//
// A frame is four bytes of length, little-endian, and that many bytes of JSON:
// one message. Calls are matched to their answers by id, both ends may call,
// and a notice is a call without an answer. The stream is foreign input: a frame
// that is not a message, or more than the Limits let the other end ask for, ends the
// connection.
package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Limits bound what the other end of a connection may make this one do.
type Limits struct {
	Request int // bytes of a call or a notice, or of an answer while none is due
	Answer  int // bytes of an answer to a call of this end
	Calls   int // calls in flight at once
	Notices int // notices a second, and as many at once
}

// The kinds of other ends.
var (
	// FromSupervisor bounds a supervisor, which an agent answers: its requests bring the peers.
	FromSupervisor = Limits{Request: maxMessage, Calls: 32, Notices: 1000}
	// FromAgent bounds an agent, and anything else that runs in its guest. An agent answers, and
	// gives notice; it calls nobody. One of its answers has the outcome of each file of a plan.
	FromAgent = Limits{Request: 64 << 10, Answer: maxMessage, Notices: 1 << 14}
	// FromCommand bounds the command line, which a supervisor answers, and FromControl a
	// supervisor that answers it.
	FromCommand = Limits{Request: 64 << 10, Calls: 4, Notices: 10}
	FromControl = Limits{Request: 64 << 10, Answer: maxMessage, Notices: 10}
)

// maxMessage bounds every message, in bytes.
const maxMessage = 16 << 20

// notifyLimit is how long the other end may take to read a notice.
const notifyLimit = 10 * time.Second

var (
	errClosed = errors.New("connection closed by the other side")
	errLimit  = errors.New("the other side broke a limit of the connection")
)

// remoteError is an error that the other end answered a call with.
type remoteError struct {
	verb string
	text string
}

func (e *remoteError) Error() string { return e.verb + ": " + e.text }

// message is what a frame holds. A request has a verb, an answer has none.
// A notice is a request whose id is zero.
type message struct {
	ID    uint64          `json:"id,omitempty"`
	Verb  string          `json:"verb,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
	Error string          `json:"error,omitempty"`
}

// Handler answers the calls of the other end. Each call runs in its own goroutine;
// notices run in the order of their arrival. What it returns is sent back as
// JSON; for a notice it is dropped.
type Handler func(ctx context.Context, verb string, body json.RawMessage) (any, error)

// Conn is one end of a connection. Its methods may be used from many goroutines.
type Conn struct {
	stream io.ReadWriteCloser
	handle Handler
	limits Limits

	writing chan struct{} // holds one token: its holder may write to the stream

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan message // by id, the calls whose answer is due; nil: nobody waits for it any more
	calls   int                     // of the other end, in flight
	notices int                     // that may still come at once
	counted time.Time               // when notices was last added to
	err     error                   // why the connection ended, if it has
}

// New returns one end of a connection that speaks over stream and answers calls
// with handle, which may be nil. Serve must run for anything to happen.
func New(stream io.ReadWriteCloser, limits Limits, handle Handler) *Conn {
	return &Conn{
		stream: stream, handle: handle, limits: limits, writing: make(chan struct{}, 1),
		waiting: make(map[uint64]chan message), notices: limits.Notices, counted: time.Now(),
	}
}

// Serve reads until the stream ends, is found broken, or asks for too much, and then
// closes it and fails every call still waiting. It returns nil on a clean end.
func (c *Conn) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.stream.Close() })
	defer stop()
	for {
		m, err := c.read()
		if err == nil {
			err = c.take(ctx, m)
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			c.fail(errClosed)
			c.stream.Close()
			return nil
		default:
			c.fail(err)
			c.stream.Close()
			return fmt.Errorf("serve connection: %w", err)
		}
	}
}

// read reads a message. One that is longer than a request may be is read only while an
// answer is due.
func (c *Conn) read() (message, error) {
	m, n, err := readMessage(c.stream, func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.waiting) > 0 {
			return max(c.limits.Request, c.limits.Answer)
		}
		return c.limits.Request
	})
	if err == nil && m.Verb != "" && n > c.limits.Request {
		err = fmt.Errorf("%w: a request of %d bytes, and at most %d are allowed", errLimit, n, c.limits.Request)
	}
	return m, err
}

// take answers a request, or hands an answer to the call that waits for it.
func (c *Conn) take(ctx context.Context, m message) error {
	switch {
	case m.Verb == "":
		c.deliver(m)
	case m.ID == 0:
		if !c.mayNotify(time.Now()) {
			return fmt.Errorf("%w: more than %d notices a second", errLimit, c.limits.Notices)
		}
		c.answer(ctx, m)
	default:
		c.mu.Lock()
		c.calls++
		calls := c.calls
		c.mu.Unlock()
		if calls > c.limits.Calls {
			return fmt.Errorf("%w: %d calls at once, and at most %d are allowed", errLimit, calls, c.limits.Calls)
		}
		go func() {
			c.answer(ctx, m)
			c.mu.Lock()
			c.calls--
			c.mu.Unlock()
		}()
	}
	return nil
}

// mayNotify counts a notice, and says whether it is within the limit.
func (c *Conn) mayNotify(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if more := int(now.Sub(c.counted).Seconds() * float64(c.limits.Notices)); more > 0 {
		c.notices, c.counted = min(c.limits.Notices, c.notices+more), now
	}
	c.notices--
	return c.notices >= 0
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.fail(errClosed)
	return c.stream.Close()
}

// Call sends a request and waits for its answer, which it decodes into out
// unless that is nil. If the other end answered with an error, Call returns its text. If
// ctx ends, the other end may still do what was asked.
func (c *Conn) Call(ctx context.Context, verb string, in, out any) error {
	reply := make(chan message, 1)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return fmt.Errorf("call %s: %w", verb, c.err)
	}
	c.next++
	id := c.next
	c.waiting[id] = reply
	c.mu.Unlock()

	if err := c.send(ctx, message{ID: id, Verb: verb}, in); err != nil {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return fmt.Errorf("call %s: %w", verb, err)
	}
	select {
	case m, ok := <-reply:
		if !ok {
			return fmt.Errorf("call %s: %w", verb, c.reason())
		}
		if m.Error != "" {
			return &remoteError{verb: verb, text: m.Error}
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(m.Body, out); err != nil {
			return fmt.Errorf("decode answer to %s: %w", verb, err)
		}
		return nil
	case <-ctx.Done():
		c.mu.Lock()
		if _, due := c.waiting[id]; due {
			c.waiting[id] = nil
		}
		c.mu.Unlock()
		return fmt.Errorf("call %s: %w", verb, context.Cause(ctx))
	}
}

// Notify sends a request without an answer.
func (c *Conn) Notify(verb string, in any) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), notifyLimit, fmt.Errorf("the other side did not read it within %v", notifyLimit))
	defer cancel()
	if err := c.send(ctx, message{Verb: verb}, in); err != nil {
		return fmt.Errorf("notify %s: %w", verb, err)
	}
	return nil
}

func (c *Conn) answer(ctx context.Context, m message) {
	var (
		out any
		err error
	)
	if c.handle == nil {
		err = errors.New("nothing is served at this end")
	} else {
		out, err = c.handle(ctx, m.Verb, m.Body)
	}
	if m.ID == 0 {
		return
	}
	if err == nil {
		err = c.send(ctx, message{ID: m.ID}, out)
		if err == nil || !errors.Is(err, ErrUnsent) {
			return
		}
	}
	_ = c.send(ctx, message{ID: m.ID, Error: err.Error()}, nil) // Serve sees that the connection is broken
}

// deliver hands an answer to the call that waits for it, if one still does.
func (c *Conn) deliver(m message) {
	c.mu.Lock()
	reply := c.waiting[m.ID]
	delete(c.waiting, m.ID)
	c.mu.Unlock()
	if reply != nil {
		reply <- m
	}
}

func (c *Conn) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Abandon fails all calls that wait for an answer, but keeps the connection: the process that
// was asked is gone, and another one is at the other end now.
func (c *Conn) Abandon(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, reply := range c.waiting {
		if reply != nil {
			reply <- message{Error: reason.Error()}
		}
		delete(c.waiting, id)
	}
}

// fail fails all calls. The first reason counts.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for id, reply := range c.waiting {
		if reply != nil {
			close(reply)
		}
		delete(c.waiting, id)
	}
}

// ErrUnsent is wrapped by the error for a message that cannot be sent at all, such as one over the limit:
// nothing of it was sent, and the connection goes on.
var ErrUnsent = errors.New("cannot be sent")

// send writes a message. If ctx ends in the middle of it, the connection is unusable and
// ends too; if ctx ends before, nothing was sent.
func (c *Conn) send(ctx context.Context, m message, body any) error {
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnsent, err)
		}
		m.Body = raw
	}
	frame, err := encodeMessage(m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnsent, err)
	}
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	n, err := c.write(ctx, frame)
	if err != nil && n == 0 && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		c.fail(err)
		c.stream.Close()
	}
	return err
}

// write writes to the stream until ctx ends, if the stream can be interrupted: a socket
// can, and a character device may not.
func (c *Conn) write(ctx context.Context, frame []byte) (int, error) {
	stream, ok := c.stream.(interface{ SetWriteDeadline(time.Time) error })
	if !ok || stream.SetWriteDeadline(time.Time{}) != nil {
		return c.stream.Write(frame)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = stream.SetWriteDeadline(time.Unix(1, 0)) // it could be set before
		close(interrupted)
	})
	n, err := c.stream.Write(frame)
	if !stop() {
		<-interrupted // so that the deadline is not set under the next writer
	}
	return n, err
}

func encodeMessage(m message) ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes is over the limit of %d", len(raw), maxMessage)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(raw))), raw...), nil
}

// readMessage reads a message, and returns its length. It calls limit once the length of a
// message has arrived. It takes little more memory than the bytes that have arrived.
func readMessage(r io.Reader, limit func() int) (m message, n int, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return m, 0, err
	}
	size := binary.LittleEndian.Uint32(head[:])
	if most := limit(); uint64(size) > uint64(most) {
		return m, 0, fmt.Errorf("%w: a message of %d bytes, and at most %d are allowed", errLimit, size, most)
	}
	var raw bytes.Buffer
	if _, err := io.CopyN(&raw, r, int64(size)); err != nil {
		return m, 0, fmt.Errorf("frame of %d bytes is cut short: %w", size, io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(raw.Bytes(), &m); err != nil {
		return m, 0, fmt.Errorf("frame is not a message: %w", err)
	}
	return m, int(size), nil
}
