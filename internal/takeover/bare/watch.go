package bare

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// period is the interval between two looks of the understudy.
const period = 5 * time.Millisecond

// pulse is one of the other kernel's counters, or the sum of several. Nobody but that kernel
// runs on its CPUs, so all of the time counts.
type pulse struct {
	liveness.Pulse
	others   []liveness.Pulse // further counters: it is silent while all of them stand still
	silencer *liveness.Silencer
	limit    time.Duration // as it is configured
}

// patience is the factor by which a silence must exceed the longest one that has ended, to
// count as a death. It is also the most that the limit is multiplied by for that. A kernel
// that was silent for long, and went on, runs on CPUs that may wait for others', as in a
// virtual machine, or are stopped by firmware: it may be silent for longer.
const patience = 4

// pulses are what the other kernel counts: the beat together with all CPUs, and a thread on each of its CPUs.
// The beat alone may stand still because its thread last slept on a CPU that is in the kernel for long, printing to a
// serial console for instance: the scheduler wakes the thread there, and does not move it.
func pulses(c *metal.Config) []*pulse {
	var all []*pulse
	add := func(limit time.Duration, p liveness.Pulse, others ...liveness.Pulse) {
		if limit > 0 {
			s := liveness.NewSilencer(max(period, limit/liveness.PulsesPerLimit), limit)
			all = append(all, &pulse{Pulse: p, others: others, silencer: s, limit: limit})
		}
	}
	cpus := liveness.CPUPulses(c.CPUs())
	add(c.Limit, liveness.Pulse{Offset: liveness.CounterOffset, Cause: liveness.Silence, Name: "the heartbeat"}, cpus...)
	for _, p := range cpus {
		add(c.CPU, p)
	}
	return all
}

// count is the pulse's counter, or the sum of its counters. at reads the one at an offset.
func (p *pulse) count(at func(offset int) uint64) uint64 {
	sum := at(p.Offset)
	for _, o := range p.others {
		sum += at(o.Offset)
	}
	return sum
}

// wait is how long a silence must be to count as a death.
func (p *pulse) wait() time.Duration {
	return min(max(p.limit, patience*p.silencer.Longest()), patience*p.limit)
}

// observe looks at the counter once.
func (p *pulse) observe(at time.Time, counter uint64) (liveness.Verdict, bool) {
	before := p.wait()
	v, dead := p.silencer.Observe(liveness.Observation{At: at, Counter: counter, Effort: liveness.Effort{}})
	now := p.wait()
	longest := p.silencer.Longest().Round(time.Millisecond)
	if now != before {
		p.silencer.SetLimit(now)
		say("%s was silent for %v: from now on %v is a death", p.Name, longest, now.Round(time.Millisecond))
	}
	if !dead {
		return v, false
	}
	v.Cause, v.Detail = p.Cause, fmt.Sprintf("%s: %s", p.Name, v.Detail)
	if now != p.limit {
		v.Detail += fmt.Sprintf(", after a silence of %v", longest)
	}
	return v, true
}

// watch returns the verdict and true when the other kernel is dead, and false when that
// kernel says that the understudy is to stop.
func watch(self *metal.Self, m *morgue.Morgue) (liveness.Verdict, bool) {
	panics := false
	all := pulses(self.Config)
	c := clock{told: self.Clock()}
	for ; ; time.Sleep(period) {
		self.Count()
		c.follow(self.Clock())
		if self.Told() {
			return liveness.Verdict{}, false
		}
		cpu, yes := m.Panicked()
		if yes && panics {
			return liveness.Verdict{Cause: liveness.PanicState, At: time.Now(), Detail: fmt.Sprintf("CPU %d is in panic()", cpu)}, true
		}
		panics = yes
		for _, p := range all {
			if v, dead := p.observe(time.Now(), p.count(self.Beat)); dead {
				return v, true
			}
		}
	}
}

// clock is the other kernel's time, as that kernel told it last.
type clock struct{ told time.Time }

// clockSlack is how far the understudy's clock may be off before it is set.
const clockSlack = 20 * time.Millisecond

// follow sets this kernel's clock when the other kernel tells its time anew: both count the
// same ticks, but something keeps the other kernel's clock right.
func (c *clock) follow(told time.Time) {
	if told.Equal(c.told) {
		return
	}
	c.told = told
	if off := time.Until(told); off.Abs() > clockSlack && off.Abs() < maxStep {
		setClock(told)
	}
}

// maxStep is more than a clock is ever set by.
const maxStep = 20 * 365 * 24 * time.Hour

func setClock(t time.Time) {
	now := unix.NsecToTimeval(t.UnixNano())
	if err := unix.Settimeofday(&now); err != nil {
		say("set clock: %v", err)
	}
}
