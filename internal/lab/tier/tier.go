// Package tier says which tests run, by one environment variable:
//
//	UNDERSTUDY_TIER=quick   no guest boots, no crash image is looked at (make test-quick)
//	UNDERSTUDY_TIER=test    or unset: every feature, on the default kernel (make test)
//	UNDERSTUDY_TIER=full    all kernels, and all that takes long (make test-full)
//
// A test that a tier leaves out is skipped, and the skip names the tier that runs it.
package tier

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

const variable = "UNDERSTUDY_TIER"

// IsFull reports whether all tests run.
func IsFull() bool { return os.Getenv(variable) == "full" }

// Guest skips a test that boots a guest, or looks at what one left, where only quick
// tests run.
func Guest(t testing.TB) {
	t.Helper()
	check(t)
	if os.Getenv(variable) == "quick" {
		t.Skip("a guest: make test runs it")
	}
}

// Full skips a test, or the rest of one, that only make test-full runs. what says why the
// test is one of those: "kernel 5.10-cloud".
func Full(t testing.TB, what string) {
	t.Helper()
	check(t)
	if !IsFull() {
		t.Skip(what + ": make test-full runs it")
	}
}

// Times returns how often a test repeats what it does, each time with other numbers: all where all
// tests run, else some.
func Times(some, all int) int {
	if IsFull() {
		return all
	}
	return some
}

// check fails a test if the variable is mistyped, which would change what runs in silence.
func check(t testing.TB) {
	t.Helper()
	switch tier := os.Getenv(variable); tier {
	case "", "quick", "test", "full":
	default:
		t.Fatalf("%s=%s: there are quick, test and full", variable, tier)
	}
}

// Lacks skips a test that lacks something which setup.sh or kernels.sh installs. Where
// all tests run it fails instead: nothing is left out there.
func Lacks(t testing.TB, why any) {
	t.Helper()
	if IsFull() {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Programs skips a test, as Lacks does, if one of some programs is not there.
func Programs(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Lacks(t, fmt.Sprint(err, "; run scripts/setup.sh"))
		}
	}
}

// Progress begins a line of a test's log that tells what the test waits for.
// runtests shows such lines while the test goes on.
const Progress = "progress: "

// Say logs what a test is about to wait for, or has waited for.
func Say(t testing.TB, format string, args ...any) {
	t.Helper()
	t.Logf(Progress+format, args...)
}
