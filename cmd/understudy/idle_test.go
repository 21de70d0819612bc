package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
)

const (
	idleFor = time.Minute
	// idleMost is how much of a CPU an understudy may use that has nothing to do. The aim is a
	// hundredth; the rest is for machines slower than the one that was measured.
	idleMost = 0.02
)

// TestIdle measures what an understudy costs while it has nothing to do.
func TestIdle(t *testing.T) {
	tier.Full(t, "what an understudy costs")
	s := stand(t, marker, writer)
	s.up()
	s.written()
	s.calm()
	of := map[string]int{"understudy": s.qemuPID("right"), "active side, at rest": s.qemuPID("left"), "supervisor": s.supervisorPID()}
	before := make(map[string]time.Duration)
	for who, pid := range of {
		before[who] = spent(t, pid)
	}
	began := time.Now()
	time.Sleep(idleFor)
	for who, pid := range of {
		part := float64(spent(t, pid)-before[who]) / float64(time.Since(began))
		row(t, "At rest", who, fmt.Sprintf("%.2f %%", part*100))
		if who == "understudy" && part > idleMost {
			t.Errorf("an idle understudy uses %.1f %% of a CPU", part*100)
		}
	}
	if _, err := understudy(t, "down"); err != nil {
		t.Fatal(err)
	}
}

// spent returns how long a process has run, in steps of 10 ms (proc(5), stat: utime and stime).
func spent(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		t.Fatalf("stat of process %d: %q", pid, b)
	}
	var user, system int64
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}
