package supervisor

import (
	"sync/atomic"
	"time"
)

// Vitals are what is seen of a pair between one event and the next.
type Vitals struct {
	// Beat and UnderstudyBeat are when each side was last seen to beat; the zero time, if
	// it was not yet, or is not there.
	Beat, UnderstudyBeat time.Time
	// Pause is the longest time for which the active side did not beat and was alive, as it
	// counts towards the limit.
	Pause time.Duration
	// Looked is when the watcher last looked at the active side.
	Looked time.Time
	// Unsaved is how many bytes the active kernel counts as not on their disks: what its
	// death would leave to be salvaged. Known is false while its memory is not known.
	Unsaved uint64
	Known   bool
	// Unread is why nothing of that would be salvaged; empty: it would.
	Unread string
}

// Vitals may be asked for at any time.
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

// seen is when a side was last seen to beat.
func (sd *side) seen() time.Time {
	if sd == nil {
		return time.Time{}
	}
	return read(&sd.beaten)
}

// read is the zero time if there is none yet.
func read(at *atomic.Pointer[time.Time]) (t time.Time) {
	if p := at.Load(); p != nil {
		t = *p
	}
	return t
}
