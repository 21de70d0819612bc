package jbd2

import (
	"fmt"
	"slices"
)

// Marked returns which of some marks the last transaction has that was written into the log,
// or -1: that is in the log still, or its blocks are, which a replay leaves when it empties
// the log. It may read all of the log.
func (l *Log) Marked(scan *Scan, marks ...Mark) (int, error) {
	if n := len(scan.Transactions); n > 0 {
		return slices.Index(marks, scan.Transactions[n-1].Mark), nil
	}
	if !scan.Empty {
		return -1, nil
	}
	// A replay gives the next number but one (Log.Replay).
	last, in := scan.Next-2, &reader{l: l}
	for p := l.Super.First; p < l.Super.Last; p++ {
		b, err := in.block(p)
		if err != nil {
			return -1, fmt.Errorf("look for the last transaction: %w", err)
		}
		h := parseHeader(b)
		if !h.valid || h.kind != commitBlock || h.sequence != last {
			continue
		}
		if n := slices.Index(marks, Mark(b[markAt:])); n >= 0 {
			return n, nil
		}
	}
	return -1, nil
}
