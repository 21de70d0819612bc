package agent

import (
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOwnCPUs: CPUs that are not the lowest-numbered ones keep their numbers.
func TestOwnCPUs(t *testing.T) {
	runtime.LockOSThread() // for ever: the affinity is that of this thread only
	all, err := ownCPUs()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 2 {
		t.Skipf("this process may run on %v only", all)
	}
	var last unix.CPUSet
	last.Set(all[len(all)-1])
	if err := unix.SchedSetaffinity(0, &last); err != nil {
		t.Fatal(err)
	}
	if got, err := ownCPUs(); err != nil || !slices.Equal(got, all[len(all)-1:]) {
		t.Errorf("%v, %v: only %d is this thread's", got, err, all[len(all)-1])
	}
}
