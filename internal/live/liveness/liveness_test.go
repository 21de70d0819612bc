package liveness

import (
	"testing"
	"time"
)

const ms = time.Millisecond

// look is an observation at a given time. The process is idle unless effort says
// otherwise.
type look struct {
	at      time.Duration
	counter uint64
	effort  Effort
}

func every(period, from, to time.Duration, counter uint64) (looks []look) {
	for at := from; at <= to; at += period {
		looks = append(looks, look{at: at, counter: counter})
	}
	return looks
}

func beat(at time.Duration, counter uint64) look { return look{at: at, counter: counter} }

func TestSilence(t *testing.T) {
	beating := []look{beat(0, 1), beat(20*ms, 2)}
	tests := []struct {
		name  string
		looks []look
		dead  time.Duration // 0 means never
	}{
		{"never began", every(20*ms, 0, 10*time.Second, 0), 0},
		{"beats on", []look{beat(0, 1), beat(20*ms, 2), beat(320*ms, 3), beat(620*ms, 4)}, 0},
		{"stops", append(beating, every(20*ms, 40*ms, time.Second, 2)...), 320 * ms},
		{"watcher late once", append(beating, append([]look{beat(5*time.Second, 2)}, every(20*ms, 5020*ms, 6*time.Second, 2)...)...), 5260 * ms},
		{"watcher late, beat alive", append(beating, beat(5*time.Second, 200)), 0},
		{"late every time", []look{beat(0, 1), beat(time.Second, 1), beat(2*time.Second, 1), beat(3*time.Second, 2)}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkVerdict(t, tt.looks, tt.dead)
		})
	}
}

// TestStarvationIsNoSilence: a partition that is kept from running is not
// dead; one that spins is.
func TestStarvationIsNoSilence(t *testing.T) {
	starved := []look{beat(0, 1)}
	for i := 1; i <= 100; i++ {
		starved = append(starved, look{time.Duration(i) * 20 * ms, 1, Effort{7: {Ready: true}}})
	}
	checkVerdict(t, starved, 0)

	half := starved // after that it gets half of the time
	for i := 1; i <= 100; i++ {
		at := time.Duration(i) * 20 * ms
		half = append(half, look{2*time.Second + at, 1, Effort{7: {Ran: at / 2, Ready: true}}})
	}
	checkVerdict(t, half, 2600*ms)

	spinning := []look{beat(0, 1)} // all CPUs in a loop of the dead kernel
	for i := 1; i <= 100; i++ {
		at := time.Duration(i) * 20 * ms
		spinning = append(spinning, look{at, 1, Effort{7: {Ran: at, Ready: true}, 8: {Ran: at, Ready: true}}})
	}
	checkVerdict(t, spinning, 300*ms)

	held := []look{beat(0, 1)} // one thread spins for what another holds that is kept from running
	for i := 1; i <= 100; i++ {
		at := time.Duration(i) * 20 * ms
		held = append(held, look{at, 1, Effort{7: {Ran: at, Ready: true}, 8: {Ready: true}, 9: {Ran: at}}})
	}
	checkVerdict(t, held, 0)
}

// TestWaitIsNoSilence: time in which a thread waited for a CPU, or a hypervisor kept a CPU
// from this machine, does not count, even if nothing waits at the moments of the observations.
func TestWaitIsNoSilence(t *testing.T) {
	for _, id := range []int{7, -1} {
		looks := []look{{at: 0, counter: 1, effort: Effort{id: {Waited: time.Hour}}}}
		for i := 1; i <= 100; i++ {
			at := time.Duration(i) * 20 * ms
			looks = append(looks, look{at, 1, Effort{id: {Waited: time.Hour + at*3/4}}})
		}
		checkVerdict(t, looks, 1200*ms)
	}
	turns := []look{{at: 0, counter: 1}} // two threads wait in turn, so that one of them always waits
	for i := 1; i <= 100; i++ {
		at := time.Duration(i) * 20 * ms
		turns = append(turns, look{at, 1, Effort{7: {Waited: at / 2}, 8: {Waited: at / 2}}})
	}
	checkVerdict(t, turns, 0)
}

// TestManyLoseALittle: a little steal time on each of many CPUs does not add up to the whole
// silence. Steal time is reported in ticks of 10 ms.
func TestManyLoseALittle(t *testing.T) {
	const limit, tick = 300 * ms, 10 * ms
	for _, n := range []int{1, 4, 16, 64, 256} {
		looks := []look{beat(0, 1)}
		for at := 20 * ms; at <= 10*time.Second; at += 20 * ms {
			effort := Effort{7: {Ran: at, Ready: true}} // a virtual CPU spins in the dead kernel
			for i := range n {
				stolen := at/50 + time.Duration(i)*tick/time.Duration(n)
				effort[-1-i] = Thread{Waited: stolen.Truncate(tick)}
			}
			looks = append(looks, look{at, 1, effort})
		}
		if dead := verdict(t, looks); dead < limit || dead > limit*5/4 {
			t.Errorf("2 %% stolen from each of %d CPUs: dead after %v, want it after %v and little more", n, dead, limit)
		}
	}
}

// TestStealIsOver: a hang that follows a long time with all CPUs stolen is found as soon as
// any other.
func TestStealIsOver(t *testing.T) {
	looks := []look{beat(0, 1)}
	for at := 20 * ms; at <= 2*time.Second; at += 20 * ms {
		stolen := Thread{Waited: min(at, time.Second)}
		looks = append(looks, look{at, 1, Effort{-1: stolen, -2: stolen, -3: stolen, -4: stolen}})
	}
	checkVerdict(t, looks, 1300*ms)
}

// TestUnknownEffortIsNoSilence: while the effort is not known, no silence counts.
func TestUnknownEffortIsNoSilence(t *testing.T) {
	s := NewSilencer(20*ms, 300*ms)
	for i := range 1000 {
		if v, dead := s.Observe(Observation{At: time.Unix(0, int64(i)*int64(20*ms)), Counter: 1}); dead {
			t.Fatal(v)
		}
	}
}

func TestBeatResetsSilence(t *testing.T) {
	looks := []look{beat(0, 1)}
	looks = append(looks, every(20*ms, 20*ms, 280*ms, 1)...)
	looks = append(looks, every(20*ms, 300*ms, 580*ms, 2)...)
	checkVerdict(t, looks, 0)
}

// TestFirstWithin: the limit of FirstWithin holds for the next beat, and for no later one.
func TestFirstWithin(t *testing.T) {
	at := func(s *Silencer, ms0, ms1 int, counter uint64) (dead int) {
		for now := ms0; now <= ms1; now += 20 {
			if _, is := s.Observe(Observation{At: time.UnixMilli(int64(now)), Counter: counter, Effort: Effort{}}); is {
				return now
			}
		}
		return 0
	}
	s := NewSilencer(20*ms, 300*ms)
	s.FirstWithin(time.Second)
	if dead := at(s, 20, 900, 7); dead != 0 {
		t.Errorf("dead at %d ms, before the first beat was due", dead)
	}
	if dead := at(s, 920, 2000, 8); dead != 1220 {
		t.Errorf("dead at %d ms, 300 ms after the beat of 920 is right", dead)
	}
	s = NewSilencer(20*ms, 300*ms)
	s.FirstWithin(time.Second)
	if dead := at(s, 20, 3000, 7); dead != 1020 {
		t.Errorf("dead at %d ms, without any beat for a second", dead)
	}
}

func checkVerdict(t *testing.T, looks []look, dead time.Duration) {
	t.Helper()
	if got := verdict(t, looks); got != dead {
		t.Fatalf("dead after %v, want %v (0: never)", got, dead)
	}
}

// verdict is the time of the look at which the silence was found to be death; 0 if it never was.
func verdict(t *testing.T, looks []look) time.Duration {
	t.Helper()
	s := NewSilencer(20*ms, 300*ms)
	start := time.Unix(1000, 0)
	for _, l := range looks {
		if l.effort == nil {
			l.effort = Effort{}
		}
		v, dead := s.Observe(Observation{At: start.Add(l.at), Counter: l.counter, Effort: l.effort})
		if !dead {
			continue
		}
		if v.Cause != Silence || v.At != start.Add(l.at) {
			t.Fatalf("%v at %v, want silence at %v", v, v.At.Sub(start), l.at)
		}
		return l.at
	}
	return 0
}
