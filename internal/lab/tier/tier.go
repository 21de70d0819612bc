// Package tier says which tests run, by one variable of the environment:
//
//	UNDERSTUDY_TIER=quick   no guest boots, no crash image is looked at (make test-quick)
//	UNDERSTUDY_TIER=test    or unset: every feature, on the default kernel (make test)
//	UNDERSTUDY_TIER=full    all kernels, and all that takes long (make test-full)
//
// A test that a tier leaves out is skipped, and the skip names the tier that runs it.
package tier

import (
	"os"
	"testing"
)

const variable = "UNDERSTUDY_TIER"

// IsFull says whether all tests run that there are.
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

// Full skips a test, or the rest of one, that only make test-full runs. what is what it
// has that others have not: "kernel 5.10-cloud".
func Full(t testing.TB, what string) {
	t.Helper()
	check(t)
	if !IsFull() {
		t.Skip(what + ": make test-full runs it")
	}
}

// Times is how often a test does what it does with ever other numbers: all of them where all tests run.
func Times(some, all int) int {
	if IsFull() {
		return all
	}
	return some
}

// check fails a test that a mistyped variable would change in silence.
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

// Progress begins a line of a test's log that tells what the test waits for.
// runtests shows such lines while the test goes on.
const Progress = "progress: "

// Say logs what a test is about to wait for, or has waited for.
func Say(t testing.TB, format string, args ...any) {
	t.Helper()
	t.Logf(Progress+format, args...)
}
