// Package hint has a type of error that says what the operator can do about it.
package hint

// Error is an error with a hint.
type Error struct {
	op   string
	err  error
	hint string
}

// New returns an error of an operation on something ("lock image /srv/data.img"), with its
// reason and a sentence or two on what the operator can do. The hint may be empty.
func New(op string, err error, hint string) *Error { return &Error{op, err, hint} }

// Error returns the text of the error, with the hint on its own line.
func (e *Error) Error() string {
	s := e.op + ": " + e.err.Error()
	if e.hint != "" {
		s += "\n  " + e.hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.err }
