// Package probe is a client that keeps asking an HTTP server one question, a fresh connection each time, and says from
// the answers for how long the service was gone.
//
// It speaks plain HTTP/1 to anything down to busybox httpd. No try outlives its deadline, which is kept below the one
// second after which TCP would repeat a lost SYN: while the server is dead nothing is waited for, and the first try
// after its return is answered.
package probe

import (
	"context"
	"crypto/sha256"
	"errors"
	"net"
	"time"
)

// Defaults for the zero fields of a Spec.
const (
	DefaultInterval = 20 * time.Millisecond
	DefaultTimeout  = 40 * time.Millisecond
	DefaultMaxBody  = 1 << 20 // bytes
)

// DialFunc opens a connection, like net.Dialer.DialContext.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Spec says what to ask, of whom, and how often.
type Spec struct {
	Address  string        // host:port; an IP literal when Dial enters a network namespace
	Path     string        // of the URL, with its leading slash
	Interval time.Duration // from the start of one try to the start of the next
	Timeout  time.Duration // of one try, from before the connection to the end of the body
	InFlight int           // tries open at once; zero means as many as keep the beat when all time out
	MaxBody  int64         // bytes; a longer body is a failed answer
	Dial     DialFunc      // nil dials from the process's own network namespace
}

// fill returns the Spec with defaults in place of its zero fields.
func (s Spec) fill() (Spec, error) {
	if s.Interval == 0 {
		s.Interval = DefaultInterval
	}
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	if s.MaxBody == 0 {
		s.MaxBody = DefaultMaxBody
	}
	if s.Interval < 0 || s.Timeout < 0 || s.InFlight < 0 || s.MaxBody < 0 {
		return s, errors.New("probe: negative interval, timeout, number of tries or body size")
	}
	if s.InFlight == 0 {
		s.InFlight = int((s.Timeout+s.Interval-1)/s.Interval) + 1
	}
	if s.Dial == nil {
		s.Dial = (&net.Dialer{}).DialContext
	}
	if s.Path == "" || s.Path[0] != '/' {
		return s, errors.New("probe: path does not begin with a slash")
	}
	return s, nil
}

// Answer is the outcome of one try. Its times carry the monotonic clock.
type Answer struct {
	Start, End time.Time
	Class      Class
	Status     int               // of HTTP; 0 if none was read
	Size       int64             // bytes of body read
	SHA256     [sha256.Size]byte // of the body, when Class is OK or BadStatus
	Err        error             // why Class is none of those two
}

// Want returns a judge that takes an answer for good only if it is complete, of status 200, and has the wanted body.
func Want(body [sha256.Size]byte) func(Answer) bool {
	return func(a Answer) bool { return a.Class == OK && a.SHA256 == body }
}
