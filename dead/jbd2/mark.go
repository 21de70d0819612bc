package jbd2

import (
	"fmt"
	"slices"
)

// Marked returns which of some marks the last transaction that was written into the log has, or -1 if
// it has none of them. The transaction is either still in the log, or its blocks are there, which a replay
// leaves when it empties the log. Marked may read all of the log.
func (l *Log) Marked(scan *Scan, marks ...Mark) (int, error) {
	if n := len(scan.Transactions); n > 0 {
		return slices.Index(marks, scan.Transactions[n-1].Mark), nil
	}
	if !scan.Empty {
		return -1, nil
	}
	// A replay sets s_sequence to the next number but one (Log.Replay).
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
