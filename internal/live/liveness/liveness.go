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
// the beat's. The others are those of slower activities (Pulse), and zero while nothing
// counts them. One word is written by the machine: the period in ns of a beat that is to
// come less often than the partition's own settings say.
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

// Pulse is an activity of a partition that must go on, and that may stop while the beat
// goes on.
type Pulse struct {
	Offset int   // of its counter in the beat page, bytes
	Cause  Cause // of the verdict if it stands still
	Name   string
}

// SchedulerPulse is the pulse of an ordinary thread, which allocates a page of memory before each count.
func SchedulerPulse() Pulse { return Pulse{schedulerOffset, StuckScheduler, "an ordinary thread"} }

// CPUPulses are the pulses of real-time threads, one pinned to each CPU.
func CPUPulses(cpus int) []Pulse {
	pulses := make([]Pulse, min(cpus, maxCPUs))
	for i := range pulses {
		pulses[i] = Pulse{cpuOffset + 8*i, StuckCPU, fmt.Sprintf("CPU %d", i)}
	}
	return pulses
}

// DiskPulses are the pulses of threads that each read one disk, bypassing the page cache, while it is mounted.
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
	// A pulse of the partition stood still past its limit.
	StuckCPU       Cause = "stuck CPU"
	StuckScheduler Cause = "stuck scheduler"
	StuckDisk      Cause = "stuck disk"
	// Degraded: the partition runs, but its agent reports that what it is there for does not work.
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
	// Effort is what the partition's process did until then. It is needed only while the
	// counter stands still; with a nil Effort no silence counts.
	Effort Effort
}

// Effort tells a process that has nothing to run from one that is kept from running. It has
// the threads of the process, by thread id, and each CPU that it may run on, by -1 minus the CPU's
// number: the Waited of a CPU is the time that a hypervisor below this machine took from it (steal time).
type Effort map[int]Thread

// Ran returns how long the threads were on a CPU, together.
func (e Effort) Ran() (sum time.Duration) {
	for _, t := range e {
		sum += t.Ran
	}
	return sum
}

// Thread is what a thread did.
type Thread struct {
	Ran    time.Duration // on a CPU, since the thread began
	Waited time.Duration // for a CPU, since the thread began, up to when it last got one
	Ready  bool          // running, or ready to run, at this moment
}

// Silencer watches a heartbeat. The zero value is not usable: see NewSilencer.
type Silencer struct {
	period, limit time.Duration
	first         time.Duration // the limit up to the next beat, if longer

	began   bool
	last    Observation
	silence time.Duration         // so far, as it would count without steal time
	stolen  map[int]time.Duration // steal time in the silence, by the CPU's key in an Effort
	since   time.Time             // when the silence began
	longest time.Duration
}

// turns is the number of CPUs whose steal time may have delayed one beat, one after the other: the one
// with QEMU's thread that has the timer, the one whose virtual CPU gets the interrupt, the one
// that the beating thread runs on, and one that holds what these need. If all of many CPUs counted, the
// sum of a little steal time on each would be longer than any silence.
const turns = 4

// NewSilencer returns a watcher of a beat that comes every period. A silence as long
// as limit is a death.
func NewSilencer(period, limit time.Duration) *Silencer {
	return &Silencer{period: period, limit: limit, stolen: make(map[int]time.Duration)}
}

// SetLimit changes how long a silence must last to be a death.
func (s *Silencer) SetLimit(limit time.Duration) { s.limit = limit }

// FirstWithin sets a longer limit for the next beat only: until now the partition was told
// to beat less often.
func (s *Silencer) FirstWithin(limit time.Duration) { s.first = limit }

// Observe takes one observation and reports a verdict once the beat has been
// still for the limit. Time that others took does not count against the partition.
// Between two observations at most two periods count, since a watcher that was itself
// late may have slept through beats, and the partition may have slept as well. Time in which
// its threads waited for a CPU does not count, nor does steal time of the CPUs that it may run on:
// until there is a beat, several threads or CPUs may wait one after the other, each for what the one before it
// does. Of the CPUs, the steal time of those that lost most in this silence is subtracted, at most turns of them.
// If threads are ready to run, no more counts than the least that one of them ran: another thread may
// wait for what a starved one holds, and the one that beats may be any of them. A partition that has
// not begun to beat, or that has reset its counter to zero, is not judged.
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
	if counted < -2*s.period { // several CPUs were stolen at once: the surplus must not offset later time
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

// Longest is the longest silence that a beat has ended, as far as it counted.
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

// counted is how much of the silence counts; it is negative where several CPUs were stolen at once.
func (s *Silencer) counted() time.Duration {
	counted, all := s.silence, slices.Sorted(maps.Values(s.stolen))
	for _, stolen := range all[max(len(all)-turns, 0):] {
		counted -= stolen
	}
	return counted
}
