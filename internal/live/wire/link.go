// Package wire lets a supervisor and the agent inside a partition, or the
// command line and a supervisor, call each other over one byte stream.
//
// A frame is four bytes of length, little-endian, and that many bytes of JSON:
// one message. Calls are matched to their answers by id, both ends may call,
// and a notice is a call that wants no answer. The stream is foreign input: a
// frame over MaxFrame, or one that is no message, ends the connection.
package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// MaxFrame bounds one message, in bytes.
const MaxFrame = 16 << 20

// ErrClosed is what a call returns when the other end went away.
var ErrClosed = errors.New("link closed by the other side")

// RemoteError is an error that the other end answered a call with.
type RemoteError struct {
	Verb string
	Text string
}

func (e *RemoteError) Error() string { return e.Verb + ": " + e.Text }

// message is what a frame holds. A request has a verb, an answer has none.
// A notice is a request whose id is zero.
type message struct {
	ID    uint64          `json:"id,omitempty"`
	Verb  string          `json:"verb,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
	Error string          `json:"error,omitempty"`
}

// Handler answers the calls of the other end. Each runs in a goroutine of its
// own, notices in the order of their arrival. What it returns is sent back as
// JSON; for a notice it is dropped.
type Handler func(ctx context.Context, verb string, body json.RawMessage) (any, error)

// Conn is one end of a link. Its methods may be used from many goroutines.
type Conn struct {
	stream io.ReadWriteCloser
	handle Handler

	writing sync.Mutex

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan message
	err     error
}

// New returns the end of a link that speaks over stream and answers calls
// with handle, which may be nil. Serve must run for anything to happen.
func New(stream io.ReadWriteCloser, handle Handler) *Conn {
	return &Conn{stream: stream, handle: handle, waiting: make(map[uint64]chan message)}
}

// Serve reads until the stream ends or is found broken, and then fails every
// call still waiting. It returns nil on a clean end.
func (c *Conn) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.stream.Close() })
	defer stop()
	for {
		m, err := readMessage(c.stream)
		if err != nil {
			c.fail(err)
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read link: %w", err)
		}
		switch {
		case m.Verb == "":
			c.settle(m)
		case m.ID == 0:
			c.answer(ctx, m)
		default:
			go c.answer(ctx, m)
		}
	}
}

// Close ends the link.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	return c.stream.Close()
}

// Call sends a request and waits for its answer, which it decodes into out
// unless that is nil. The error is a *RemoteError if the other end answered
// with one.
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
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()

	if err := c.send(message{ID: id, Verb: verb}, in); err != nil {
		return fmt.Errorf("call %s: %w", verb, err)
	}
	select {
	case m, ok := <-reply:
		if !ok {
			return fmt.Errorf("call %s: %w", verb, ErrClosed)
		}
		if m.Error != "" {
			return &RemoteError{Verb: verb, Text: m.Error}
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(m.Body, out); err != nil {
			return fmt.Errorf("decode answer to %s: %w", verb, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("call %s: %w", verb, context.Cause(ctx))
	}
}

// Notify sends a request that wants no answer.
func (c *Conn) Notify(verb string, in any) error {
	if err := c.send(message{Verb: verb}, in); err != nil {
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
	reply := message{ID: m.ID}
	if err != nil {
		reply.Error, out = err.Error(), nil
	}
	if err := c.send(reply, out); err != nil {
		c.fail(err)
	}
}

func (c *Conn) settle(m message) {
	c.mu.Lock()
	reply := c.waiting[m.ID]
	delete(c.waiting, m.ID)
	c.mu.Unlock()
	if reply != nil {
		reply <- m
	}
}

func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for id, reply := range c.waiting {
		close(reply)
		delete(c.waiting, id)
	}
}

func (c *Conn) send(m message, body any) error {
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		m.Body = raw
	}
	frame, err := encodeMessage(m)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	_, err = c.stream.Write(frame)
	return err
}

func encodeMessage(m message) ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxFrame {
		return nil, fmt.Errorf("message of %d bytes is over the limit of %d", len(raw), MaxFrame)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(raw))), raw...), nil
}

func readMessage(r io.Reader) (message, error) {
	var (
		m    message
		head [4]byte
	)
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return m, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > MaxFrame {
		return m, fmt.Errorf("frame of %d bytes is over the limit of %d", n, MaxFrame)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return m, fmt.Errorf("frame of %d bytes is cut short: %w", n, io.ErrUnexpectedEOF)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("frame is no message: %w", err)
	}
	return m, nil
}
