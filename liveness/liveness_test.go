package liveness

import (
	"testing"
	"time"
)

const ms = time.Millisecond

// look is an observation at a time and how long the CPUs were starved by then.
type look struct {
	at      time.Duration
	counter uint64
	starved time.Duration
}

func every(period, from, to time.Duration, counter uint64) (looks []look) {
	for at := from; at <= to; at += period {
		looks = append(looks, look{at: at, counter: counter})
	}
	return looks
}

func TestSilence(t *testing.T) {
	beating := []look{{at: 0, counter: 1}, {at: 20 * ms, counter: 2}}
	tests := []struct {
		name  string
		looks []look
		dead  time.Duration // 0: never
	}{
		{"never began", every(20*ms, 0, 10*time.Second, 0), 0},
		{"beats on", []look{{0, 1, 0}, {20 * ms, 2, 0}, {320 * ms, 3, 0}, {620 * ms, 4, 0}}, 0},
		{"stops", append(beating, every(20*ms, 40*ms, time.Second, 2)...), 320 * ms},
		{"watcher late once", append(beating, append([]look{{5 * time.Second, 2, 0}}, every(20*ms, 5020*ms, 6*time.Second, 2)...)...), 5260 * ms},
		{"watcher late, beat alive", append(beating, look{5 * time.Second, 200, 0}), 0},
		{"late every time", []look{{0, 1, 0}, {time.Second, 1, 0}, {2 * time.Second, 1, 0}, {3 * time.Second, 2, 0}}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			checkVerdict(t, tt.looks, tt.dead)
		})
	}
}

func TestStarvationIsNoSilence(t *testing.T) {
	looks := []look{{0, 1, 0}}
	for i := 1; i <= 100; i++ { // CPUs that wait all the time
		at := time.Duration(i) * 20 * ms
		looks = append(looks, look{at, 1, at})
	}
	checkVerdict(t, looks, 0)
	for i := 1; i <= 100; i++ { // then get half of it
		at := time.Duration(i) * 20 * ms
		looks = append(looks, look{2*time.Second + at, 1, 2*time.Second + at/2})
	}
	checkVerdict(t, looks, 2600*ms)
}

func TestBeatResetsSilence(t *testing.T) {
	looks := []look{{0, 1, 0}}
	looks = append(looks, every(20*ms, 20*ms, 280*ms, 1)...)
	looks = append(looks, every(20*ms, 300*ms, 580*ms, 2)...)
	checkVerdict(t, looks, 0)
}

func checkVerdict(t *testing.T, looks []look, dead time.Duration) {
	t.Helper()
	s := NewSilencer(20*ms, 300*ms)
	start := time.Unix(1000, 0)
	for _, l := range looks {
		v, ok := s.Observe(Observation{At: start.Add(l.at), Counter: l.counter, Starved: l.starved})
		if !ok {
			continue
		}
		if v.Cause != Silence || v.At != start.Add(dead) || dead == 0 {
			t.Fatalf("verdict %v at %v, want it at %v", v, v.At.Sub(start), dead)
		}
		return
	}
	if dead != 0 {
		t.Fatalf("no verdict, want one at %v", dead)
	}
}
