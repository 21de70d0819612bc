package probe

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// Class is how a try ended.
type Class string

// The classes of answers.
const (
	OK          Class = "ok"          // status 200 and a complete body
	BadStatus   Class = "status"      // a complete answer of another status
	Timeout     Class = "timeout"     // the deadline of the try passed
	Refused     Class = "refused"     // nobody listens
	Reset       Class = "reset"       // the connection was reset
	Short       Class = "short"       // the connection ended before the answer did
	Unreachable Class = "unreachable" // no route, or no link address for the server
	TooLong     Class = "too-long"    // the body exceeds Spec.MaxBody
	Other       Class = "other"       // anything else; see Answer.Err
)

// errTooLong ends the reading of a body beyond Spec.MaxBody.
var errTooLong = errors.New("body is too long")

// classify finds the class of a failed try.
func classify(err error) Class {
	var netErr net.Error
	switch {
	case errors.Is(err, errTooLong):
		return TooLong
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Unreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &netErr) && netErr.Timeout():
		return Timeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Short
	}
	return Other
}

// Counts is a tally of answers. Good, WrongBody and Errors add up to Total.
type Counts struct {
	Total     int           `json:"total"`
	Good      int           `json:"good"`
	WrongBody int           `json:"wrong_body"` // OK, yet not good
	Errors    map[Class]int `json:"errors"`     // by class, OK not among them
}

// Tally counts answers; good is asked only about answers of class OK.
func Tally(answers []Answer, good func(Answer) bool) Counts {
	c := Counts{Total: len(answers), Errors: map[Class]int{}}
	for _, a := range answers {
		switch {
		case a.Class != OK:
			c.Errors[a.Class]++
		case good(a):
			c.Good++
		default:
			c.WrongBody++
		}
	}
	return c
}
