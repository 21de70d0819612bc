package nfsbench

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// shortGap is the time below which a gap between two completions is not kept.
const shortGap = 10 * time.Millisecond

// maxKept bounds the gaps and the failures that a Moments keeps.
const maxKept = 20_000

// Gap is a time in which nothing was completed, in ns of CLOCK_MONOTONIC on the machine
// where it was measured.
type Gap struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Failure is an operation that failed, from its begin to its end.
type Failure struct {
	Gap
	Op    string `json:"op"`
	Path  string `json:"path"`
	Errno int    `json:"errno"` // 0 if there is none; then only Text says what failed
	Text  string `json:"text"`
}

// Moments are the completions of one stream of operations, each of which begins when the
// one before has ended.
type Moments struct {
	mu     sync.Mutex
	ended  bool
	last   int64
	result Stream
}

// Stream is the outcome of a stream of operations.
type Stream struct {
	Name     string    `json:"name"`
	Done     int       `json:"done"`     // operations that succeeded
	Gaps     []Gap     `json:"gaps"`     // between successes, the short ones left out
	Failures []Failure `json:"failures"` // all that did not succeed
}

// clock returns CLOCK_MONOTONIC in ns, which other processes share.
func clock() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail: the clock exists
	return t.Nano()
}

// newMoments begins a stream.
func newMoments(name string) *Moments {
	return &Moments{last: clock(), result: Stream{Name: name, Gaps: []Gap{}, Failures: []Failure{}}}
}

// do carries out an operation and notes how it ended.
func (m *Moments) do(op, path string, f func() error) error {
	began := clock()
	err := f()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.fail(Failure{Gap: Gap{began, clock()}, Op: op, Path: path, Text: err.Error()}, err)
		return err
	}
	m.result.Done++
	m.gap(clock())
	return nil
}

func (m *Moments) fail(f Failure, err error) {
	var errno unix.Errno
	if errors.As(err, &errno) {
		f.Errno = int(errno)
	}
	if len(m.result.Failures) < maxKept {
		m.result.Failures = append(m.result.Failures, f)
	}
}

func (m *Moments) gap(now int64) {
	if g := (Gap{m.last, now}); time.Duration(now-m.last) >= shortGap && len(m.result.Gaps) < maxKept {
		m.result.Gaps = append(m.result.Gaps, g)
	}
	m.last = now
}

// done returns how many operations have succeeded.
func (m *Moments) done() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.result.Done
}

// end returns the stream up to now. The time since the last completion is a gap, too.
func (m *Moments) end() Stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ended {
		m.gap(clock())
		m.ended = true
	}
	return m.result
}

// shift moves all times, from the clock they were measured with to another.
func (s *Stream) shift(by int64) {
	for i := range s.Gaps {
		s.Gaps[i].From += by
		s.Gaps[i].To += by
	}
	for i := range s.Failures {
		s.Failures[i].From += by
		s.Failures[i].To += by
	}
}

// Stall returns the longest gap among those that ended after the given time, that of a
// crash.
func (s *Stream) Stall(after int64) time.Duration {
	var longest int64
	for _, g := range s.Gaps {
		if g.To > after {
			longest = max(longest, g.To-g.From)
		}
	}
	return time.Duration(longest)
}
