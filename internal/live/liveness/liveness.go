// Package liveness turns evidence about a partition into a verdict. It is pure: the
// watcher passes observations with their times, so that tests need no clock.
package liveness

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// The beat page that a partition shares with its machine: a magic word, then
// counters, each 64 bits little-endian and written by the partition only. The first is
// the beat's. The others are of what works more slowly (Pulse), and zero while nobody
// counts. One word is written by the machine: the period of a beat that is to come more
// seldom than its own says, in ns.
const (
	PageBytes     = 4096
	PageMagic     = 0x7474616562647375 // "usdbeatt" in memory
	CounterOffset = 8                  // bytes into the page

	schedulerOffset = 16
	PaceOffset      = 24
	cpuOffset       = 64                    // of CPU 0
	diskOffset      = cpuOffset + 8*maxCPUs // of disk 0
	maxCPUs         = 256                   // more have no counter of their own
	maxDisks        = (PageBytes - diskOffset) / 8
)

// Pulse is something of a partition that has to go on, and that a kernel may stop doing
// while its beat goes on.
type Pulse struct {
	Offset int   // of its counter in the beat page, bytes
	Cause  Cause // of the verdict if it stands still
	Name   string
}

// SchedulerPulse is that of an ordinary thread, which gets a page of memory each time.
func SchedulerPulse() Pulse { return Pulse{schedulerOffset, StuckScheduler, "an ordinary thread"} }

// CPUPulses are of real-time threads, one kept on each CPU.
func CPUPulses(cpus int) []Pulse {
	pulses := make([]Pulse, min(cpus, maxCPUs))
	for i := range pulses {
		pulses[i] = Pulse{cpuOffset + 8*i, StuckCPU, fmt.Sprintf("CPU %d", i)}
	}
	return pulses
}

// DiskPulses are of threads that read each disk, past the page cache, while it is mounted.
func DiskPulses(disks []string) []Pulse {
	pulses := make([]Pulse, min(len(disks), maxDisks))
	for i := range pulses {
		pulses[i] = Pulse{diskOffset + 8*i, StuckDisk, "disk " + disks[i]}
	}
	return pulses
}

// PulsesPerLimit is how many times a pulse counts within its limit.
const PulsesPerLimit = 8

// Cause is the kind of evidence that a verdict rests on.
type Cause string

// The causes of death.
const (
	DyingMessage Cause = "dying message" // the kernel said so itself, by pvpanic
	Silence      Cause = "heartbeat"     // the beat stood still past its limit
	ProcessGone  Cause = "process gone"  // the partition's process ended
	PanicState   Cause = "panic state"   // its memory says that a CPU is in panic()
	// One of its pulses stood still past its limit.
	StuckCPU       Cause = "stuck CPU"
	StuckScheduler Cause = "stuck scheduler"
	StuckDisk      Cause = "stuck disk"
	// Degraded: it runs, and its agent says that what it is for does not.
	Degraded Cause = "degraded"
)

// Verdict says that a partition is dead, since when that is known, and why.
type Verdict struct {
	Cause  Cause
	At     time.Time
	Detail string
}

func (v Verdict) String() string { return fmt.Sprintf("%s: %s", v.Cause, v.Detail) }

// Observation is one look at a partition's beat.
type Observation struct {
	At      time.Time
	Counter uint64
	// Effort is what its process did until then. It need be known only when the
	// counter stands still; without it, which is nil, no silence counts.
	Effort Effort
}

// Effort tells a process that does not want to run from one that may not: its
// threads, by number, and each CPU that it may run on, by -1 less the CPU's number: what that
// waited is what a hypervisor below this machine kept from it (steal time).
type Effort map[int]Thread

// Thread is what a thread did.
type Thread struct {
	Ran    time.Duration // on a CPU, since it began
	Waited time.Duration // for a CPU, since it began, up to when it last got one
	Ready  bool          // to run, or running, just now
}

// Silencer watches a heartbeat. The zero value is not usable: see NewSilencer.
type Silencer struct {
	period, limit time.Duration
	first         time.Duration // the limit up to the next beat, if longer

	began   bool
	last    Observation
	silence time.Duration         // so far, as it would count if no hypervisor had kept a CPU
	stolen  map[int]time.Duration // of it, by what of an Effort is a CPU
	since   time.Time             // of the silence
	longest time.Duration
}

// turns is of how many CPUs the steal time may have kept one beat, one after the other: the one
// with QEMU's thread that has the timer, the one whose virtual CPU gets the interrupt, the one
// that the beating thread runs on, and one that holds what these need. Of many CPUs, the sum of
// a little steal time of each would be longer than any silence.
const turns = 4

// NewSilencer returns a watcher of a beat that comes every period and is death
// after limit without one.
func NewSilencer(period, limit time.Duration) *Silencer {
	return &Silencer{period: period, limit: limit, stolen: make(map[int]time.Duration)}
}

// SetLimit changes after how long without a beat it is a death.
func (s *Silencer) SetLimit(limit time.Duration) { s.limit = limit }

// FirstWithin gives the next beat a limit of its own: it is of one that was to come more
// seldom.
func (s *Silencer) FirstWithin(limit time.Duration) { s.first = limit }

// Observe takes one observation and reports a verdict once the beat has been
// still for the limit. It does not hold against the partition time that
// others took: of the time between two observations no more counts than two
// periods, since a watcher that was late itself may have slept through beats,
// as the partition may have. What its threads waited for a CPU does not count, nor what a
// hypervisor kept from the CPUs that it may run on: one may wait after the other, each for what
// the one before it does, until there is a beat; of the CPUs, those that were kept longest in
// this silence are taken off, as many as take their turns. And if threads are ready to run, no more counts
// than each of them ran: another may wait for what a starved one holds, and the one that
// beats may be any of them. A partition that has not begun to beat,
// or that has taken its count back to zero, is not judged.
func (s *Silencer) Observe(o Observation) (Verdict, bool) {
	prev := s.last
	s.last = o
	if !s.began || o.Counter == 0 {
		s.began = o.Counter > 0
		s.begin(o.At)
		return Verdict{}, false
	}
	if o.Counter != prev.Counter {
		s.longest = max(s.longest, s.counted())
		s.first = 0
		s.begin(o.At)
		return Verdict{}, false
	}
	s.add(prev, o)
	limit, counted := max(s.limit, s.first), s.counted()
	if counted < -2*s.period { // several CPUs were kept at once: that makes up for no time after it
		s.silence = 0
		clear(s.stolen)
	}
	if counted < limit {
		return Verdict{}, false
	}
	return Verdict{
		Cause:  Silence,
		At:     o.At,
		Detail: fmt.Sprintf("no beat for %v, of which %v count, the limit is %v", o.At.Sub(s.since).Round(time.Millisecond), counted.Round(time.Millisecond), limit),
	}, true
}

// Longest is the longest silence that ended, as it counted.
func (s *Silencer) Longest() time.Duration { return s.longest }

// begin begins a silence.
func (s *Silencer) begin(at time.Time) {
	s.silence, s.since = 0, at
	clear(s.stolen)
}

// add adds the time between two observations to the silence.
func (s *Silencer) add(prev, o Observation) {
	if prev.Effort == nil || o.Effort == nil {
		return
	}
	gap := o.At.Sub(prev.At)
	waited, counts := time.Duration(0), min(gap, 2*s.period)
	for id, t := range o.Effort {
		switch before := prev.Effort[id]; {
		case t.Ready:
			counts = min(counts, t.Ran-before.Ran)
		case id >= 0:
			waited += t.Waited - before.Waited
		}
	}
	counts = max(min(counts, gap-waited), 0)
	s.silence += counts
	for id, t := range o.Effort {
		if left := gap - (t.Waited - prev.Effort[id].Waited); id < 0 && left < counts {
			s.stolen[id] += counts - max(left, 0)
		}
	}
}

// counted is how much of the silence counts; it is negative where several CPUs were kept at once.
func (s *Silencer) counted() time.Duration {
	counted, all := s.silence, slices.Sorted(maps.Values(s.stolen))
	for _, stolen := range all[max(len(all)-turns, 0):] {
		counted -= stolen
	}
	return counted
}
