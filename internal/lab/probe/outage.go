package probe

import (
	"errors"
	"time"
)

// Reasons why an outage cannot be told.
var (
	ErrNeverGood = errors.New("no good answer before the crash")
	ErrNeverBack = errors.New("no good answer after the crash")
)

// Gap is the time for which the service was gone as its client saw it.
type Gap struct {
	Last     Answer        // the last good answer that ended before the crash
	First    Answer        // the first good answer of a try begun after the crash
	Duration time.Duration // from the end of Last to the end of First
}

// Outage finds the gap around a crash. Answers may come in any order.
//
// The crash is any instant at which neither side could answer. When the exact one is not known, take the moment the
// fence was proven: before it the new side is not reachable, after it the old side is dead. A good answer whose try
// spans the instant may have come from either side, so it counts for neither: the gap may come out longer than it was
// by less than one try, never shorter.
func Outage(answers []Answer, good func(Answer) bool, crash time.Time) (Gap, error) {
	var last, first *Answer
	for i := range answers {
		a := &answers[i]
		before, after := a.End.Before(crash), !a.Start.Before(crash)
		switch {
		case before && (last == nil || a.End.After(last.End)) && good(*a):
			last = a
		case after && (first == nil || a.End.Before(first.End)) && good(*a):
			first = a
		}
	}
	var gap Gap
	if last != nil {
		gap.Last = *last
	}
	if first != nil {
		gap.First = *first
	}
	switch {
	case last == nil:
		return gap, ErrNeverGood
	case first == nil:
		return gap, ErrNeverBack
	}
	gap.Duration = first.End.Sub(last.End)
	return gap, nil
}
