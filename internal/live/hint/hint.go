// Package hint has the error that says what the operator can do about it.
package hint

// Error is an error with a hint.
type Error struct {
	op   string
	err  error
	hint string
}

// New is an error of an operation on something ("lock image /srv/data.img") for a reason,
// and a sentence or two on what the operator can do; empty: nothing is known.
func New(op string, err error, hint string) *Error { return &Error{op, err, hint} }

// Error has the hint on a line of its own.
func (e *Error) Error() string {
	s := e.op + ": " + e.err.Error()
	if e.hint != "" {
		s += "\n  " + e.hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.err }
