package nfsbench

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/takeover"
)

// Report is the outcome of one run.
type Report struct {
	Row  string `json:"row"`
	Seed uint64 `json:"seed"`

	// Broken is why the run did not come to its end. Such a run counts as failed, and in
	// no metric.
	Broken string `json:"broken,omitempty"`

	PingGapMS float64            `json:"ping_gap_ms"`
	StallMS   map[string]float64 `json:"stall_ms"` // by stream

	// Errors are all errors that clients got, except those in LostReplies: the errors of
	// operations that were under way at the crash, were carried out, and were repeated
	// because the reply had been lost.
	Errors      []string `json:"errors"`
	LostReplies []string `json:"lost_replies"`

	UnsavedBytes int64      `json:"unsaved_bytes"` // dirty in the server right before the crash
	CheckedBytes int64      `json:"checked_bytes"` // acknowledged, and compared
	BytesLost    int64      `json:"bytes_lost"`
	Findings     []string   `json:"findings"` // what is not as acknowledged
	Checks       []string   `json:"checks"`   // what was compared
	Retried      []*Retried `json:"retried"`
	Unstable     Unstable   `json:"unstable"`

	Steps    []takeover.Step `json:"steps,omitempty"`
	Streams  []Stream        `json:"streams"`
	Failures []string        `json:"failures"` // what should have held and did not
}

// stall returns the longest stall of the streams whose names begin with prefix, in ms.
func (r *Report) stall(prefix string) float64 {
	var longest float64
	for name, ms := range r.StallMS {
		if strings.HasPrefix(name, prefix) {
			longest = max(longest, ms)
		}
	}
	return longest
}

func (r *Report) fail(format string, args ...any) {
	r.Failures = append(r.Failures, fmt.Sprintf(format, args...))
}

// clockSlack is how far the clock of the client's guest may be off, and how much later
// than ordered a crash may come.
const clockSlack = 100 * time.Millisecond

// judge sorts the failures of a stream, and notes its stall. Only the reply to an
// operation that was under way at the crash can have been lost.
func (r *Report) judge(s *Stream, crashed int64) {
	for _, f := range s.Failures {
		text := fmt.Sprintf("%s: %s %s: %s", s.Name, f.Op, f.Path, f.Text)
		if f.From <= crashed+int64(clockSlack) && f.To >= crashed && asIfRepeated(f.Op, errnoOf(f)) {
			r.LostReplies = append(r.LostReplies, text)
			continue
		}
		r.Errors = append(r.Errors, text)
	}
	r.StallMS[s.Name] = float64(s.Stall(crashed).Microseconds()) / 1000
	s.Gaps = around(s.Gaps, crashed)
}

// around returns the gaps that ended after a crash, with times counted from it.
func around(gaps []Gap, crashed int64) []Gap {
	kept := []Gap{}
	for _, g := range gaps {
		if g.To > crashed {
			kept = append(kept, Gap{g.From - crashed, g.To - crashed})
		}
	}
	return kept
}

// line describes a run in one line.
func (r *Report) line() string {
	held := "held"
	if r.Broken != "" {
		return fmt.Sprintf("%-45s BROKE OFF: %s", r.Row, r.Broken)
	}
	if len(r.Failures) > 0 {
		held = "FAILED: " + r.Failures[0]
	}
	return fmt.Sprintf("%-45s ping %5.0f  v3/TCP %5.0f  v3/UDP %5.0f  v4.2 %5.0f ms  errors %d (lost replies %d)  %d of %d bytes lost  %s",
		r.Row, r.PingGapMS, r.stall(streamV3), r.stall(streamUDP), r.stall(streamV42), len(r.Errors), len(r.LostReplies), r.BytesLost, r.CheckedBytes, held)
}

// errnoOf returns a failure's number as an error.
func errnoOf(f Failure) error { return unix.Errno(f.Errno) }
