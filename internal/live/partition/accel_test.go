package partition

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestSooner: KVM is used if it runs the kernel before TCG does, and not if it hangs; no probe is left running.
func TestSooner(t *testing.T) {
	broken := errors.New("no QEMU")
	type trial struct {
		after time.Duration // 0: hangs
		runs  bool
		err   error
	}
	for name, tt := range map[string]struct {
		kvm, tcg trial
		want     Accel
		err      error
	}{
		"hardware":         {trial{time.Second / 3, true, nil}, trial{2 * time.Second, true, nil}, KVM, nil},
		"refused":          {trial{time.Second / 3, false, nil}, trial{2 * time.Second, true, nil}, TCG, nil},
		"hangs":            {trial{}, trial{2 * time.Second, true, nil}, TCG, nil},
		"hangs, busy":      {trial{}, trial{90 * time.Second, true, nil}, "", errSlow},
		"somewhat slower":  {trial{3 * time.Second, true, nil}, trial{2 * time.Second, true, nil}, "", errSlow},
		"refused late":     {trial{3 * time.Second, false, nil}, trial{2 * time.Second, true, nil}, TCG, nil},
		"emulated machine": {trial{40 * time.Second, true, nil}, trial{300 * time.Second, true, nil}, KVM, nil},
		"slower":           {trial{40 * time.Second, true, nil}, trial{30 * time.Second, true, nil}, "", errSlow},
		"TCG fails first":  {trial{40 * time.Second, true, nil}, trial{time.Second, false, nil}, KVM, nil},
		"neither":          {trial{}, trial{time.Second, false, nil}, "", errSlow},
		"nothing to run":   {trial{time.Second, false, broken}, trial{time.Second, false, broken}, "", broken},
		"both hang":        {trial{}, trial{}, "", errSlow},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, err := sooner(t.Context(), func(ctx context.Context, a Accel) (bool, error) {
					p := tt.kvm
					if a == TCG {
						p = tt.tcg
					}
					if p.after == 0 {
						p = trial{probeLimit, false, errSlow}
					}
					select {
					case <-time.After(p.after):
						return p.runs, p.err
					case <-ctx.Done():
						return false, context.Cause(ctx)
					}
				})
				if got != tt.want || !errors.Is(err, tt.err) {
					t.Errorf("%q, %v; want %q, %v", got, err, tt.want, tt.err)
				}
			})
		})
	}
}

// TestKeep: an answer replaces an older one as a whole, and no other file is left beside it.
func TestKeep(t *testing.T) {
	file := filepath.Join(t.TempDir(), "accel", "kernel")
	for _, want := range []Accel{KVM, TCG} {
		if err := keep(file, want); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); string(got) != string(want) || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	if names, err := os.ReadDir(filepath.Dir(file)); len(names) != 1 || err != nil {
		t.Errorf("%v, %v", names, err)
	}
}

// TestFindWithoutCache: where no cache directory is known, as in a process that a cluster manager starts, a
// kernel is probed each time; where there is one, once.
func TestFindWithoutCache(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	for _, name := range []string{"HOME", "XDG_CACHE_HOME"} {
		t.Setenv(name, "")
	}
	for cache, want := range map[string]int32{"": 2, t.TempDir(): 1} {
		t.Setenv("UNDERSTUDY_CACHE", cache)
		var booted atomic.Int32
		for range 2 {
			got, err := find(t.Context(), kernel, func(ctx context.Context, a Accel) (bool, error) {
				if a == KVM {
					booted.Add(1)
					return true, nil
				}
				<-ctx.Done()
				return false, context.Cause(ctx)
			})
			if got != KVM || err != nil {
				t.Errorf("cache %q: %q, %v", cache, got, err)
			}
		}
		if n := booted.Load(); n != want {
			t.Errorf("cache %q: probed %d times, not %d", cache, n, want)
		}
	}
	if left, err := os.ReadDir("."); err != nil || len(left) > 0 {
		t.Errorf("left here: %v, %v", left, err)
	}
}

// TestAnswerOfQEMU: the answer for one QEMU is not used for another one that has replaced it.
func TestAnswerOfQEMU(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]string)
	for _, help := range []string{"no QEMU", "7.2", "10.0"} {
		if help != "no QEMU" {
			installs(t, help, "")
		}
		name, err := answerName(kernel)
		if err != nil {
			t.Fatal(err)
		}
		if seen[name] != "" {
			t.Errorf("%s has the answers of %s", help, seen[name])
		}
		seen[name] = help
	}
}

// TestWithheld: for a machine without KVM nothing is reported; a KVM that cannot be opened is.
func TestWithheld(t *testing.T) {
	defer func(before string) { kvmPath = before }(kvmPath)
	dir := t.TempDir()
	file := filepath.Join(dir, "kvm")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{file: false, filepath.Join(dir, "none"): false, dir: true} { // a directory cannot be opened for writing, not even by root
		if kvmPath = path; (Withheld() != nil) != want {
			t.Errorf("%s: %v", path, Withheld())
		}
	}
}
