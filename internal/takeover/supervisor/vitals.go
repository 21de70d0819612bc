package supervisor

import (
	"sync/atomic"
	"time"
)

// Vitals is the observed state of a pair between one event and the next.
type Vitals struct {
	// Beat and UnderstudyBeat are when each side was last seen to beat. Each is zero if
	// that side was not seen to beat yet, or does not exist.
	Beat, UnderstudyBeat time.Time
	// Pause is the longest time without a beat of an active side that was alive, as it
	// counts towards the limit.
	Pause time.Duration
	// Looked is when the watcher last looked at the active side.
	Looked time.Time
	// Unsaved is how many bytes the active kernel counts as not yet on its disks: what would have to
	// be salvaged if it died. Known is false as long as the kernel has not been found in its memory.
	Unsaved uint64
	Known   bool
	// Unread says why nothing of that would be salvaged; empty if it would be.
	Unread string
}

// Vitals may be called at any time.
func (s *Supervisor) Vitals() Vitals {
	s.mu.Lock()
	active, understudy, m := s.active, s.understudy, s.morgue
	v := Vitals{Beat: active.seen(), UnderstudyBeat: understudy.seen(), Unread: s.lost[lostKernel]}
	s.mu.Unlock()
	if active != nil {
		v.Looked, v.Pause = read(&active.looked), time.Duration(active.longest.Load())
	}
	if m != nil {
		v.Unsaved, v.Known = m.Unsaved()
	}
	return v
}

// seen returns when a side was last seen to beat.
func (sd *side) seen() time.Time {
	if sd == nil {
		return time.Time{}
	}
	return read(&sd.beaten)
}

// read returns the zero time if nothing is stored yet.
func read(at *atomic.Pointer[time.Time]) (t time.Time) {
	if p := at.Load(); p != nil {
		t = *p
	}
	return t
}
