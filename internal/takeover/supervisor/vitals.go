package supervisor

import "time"

// Vitals are what is seen of a pair between one event and the next.
type Vitals struct {
	// Beat and UnderstudyBeat are when each side was last seen to beat; the zero time, if
	// it was not yet, or is not there.
	Beat, UnderstudyBeat time.Time
	// Looked is when the watcher last looked at the active side.
	Looked time.Time
	// Unsaved is how many bytes the active kernel counts as not on their disks: what its
	// death would leave to be salvaged. Known is false while its memory is not known.
	Unsaved uint64
	Known   bool
}

// Vitals may be asked for at any time.
func (s *Supervisor) Vitals() Vitals {
	s.mu.Lock()
	active, understudy, m := s.active, s.understudy, s.morgue
	s.mu.Unlock()
	v := Vitals{Beat: active.seen(), UnderstudyBeat: understudy.seen()}
	if active != nil {
		v.Looked = at(active.lookedAt.Load())
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
	return at(sd.beatAt.Load())
}

// at is the time of some nanoseconds since 1970; 0 is the zero time.
func at(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}
