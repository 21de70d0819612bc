package jbd2

import "fmt"

// Marked reports whether the last transaction that was written into the log has a mark:
// that is in the log still, or its blocks are, which a replay leaves when it empties the log.
// It may read all of the log.
func (l *Log) Marked(scan *Scan, mark Mark) (bool, error) {
	if n := len(scan.Transactions); n > 0 {
		return scan.Transactions[n-1].Mark == mark, nil
	}
	if !scan.Empty {
		return false, nil
	}
	// A replay gives the next number but one (Log.Replay).
	last, in := scan.Next-2, &reader{l: l}
	for p := l.Super.First; p < l.Super.Last; p++ {
		b, err := in.block(p)
		if err != nil {
			return false, fmt.Errorf("look for the last transaction: %w", err)
		}
		h := parseHeader(b)
		if h.valid && h.kind == commitBlock && h.sequence == last && Mark(b[markAt:]) == mark {
			return true, nil
		}
	}
	return false, nil
}
