package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// pretended is an understudy that beats until a given time.
type pretended struct{ until time.Time }

func (pretended) SetClock(time.Time) {}

func (p pretended) Beats() uint64 {
	if time.Now().After(p.until) {
		return 0
	}
	return uint64(time.Now().UnixNano())
}

func (pretended) Log() []byte { return nil }

// TestAttend checks that attend returns when it is told to end, when the understudy stands still, and
// when the machine is no longer fit.
func TestAttend(t *testing.T) {
	unfit := errors.New("unfit")
	for _, c := range []struct {
		name              string
		lives, fit, ended time.Duration
		looks             time.Duration // how long the check that the machine is fit takes
		wrong             bool
		most              time.Duration
	}{
		{"ended", time.Hour, time.Hour, time.Minute, 0, false, time.Minute},
		{"unfit", time.Hour, time.Minute, time.Hour, 0, true, time.Minute + fitPeriod},
		{"still", time.Minute, time.Hour, time.Hour, 0, true, time.Minute + stillLimit + 2*clockPeriod},
		{"busy", time.Hour, time.Hour, time.Minute, 3 * stillLimit, false, time.Minute},
		{"busy, and still", time.Minute, time.Hour, time.Hour, 3 * stillLimit, true, time.Minute + stillLimit + 2*clockPeriod},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), c.ended)
				defer cancel()
				err := attend(ctx, pretended{start.Add(c.lives)}, func() error {
					time.Sleep(c.looks)
					if time.Since(start) > c.fit {
						return unfit
					}
					return nil
				})
				if took := time.Since(start); (err != nil) != c.wrong || took < time.Minute || took > c.most {
					t.Errorf("after %v: %v", took, err)
				}
				time.Sleep(c.looks) // until the last check has ended
			})
		})
	}
}

// TestBeats checks that the threads on the CPUs count several times within each of both limits.
func TestBeats(t *testing.T) {
	for _, c := range []struct{ limit, cpu, want time.Duration }{
		{time.Second, 10 * time.Second, time.Second},
		{time.Minute, 10 * time.Second, 10 * time.Second},
		{time.Second, 0, time.Second},
		{0, 10 * time.Second, 10 * time.Second},
		{0, 0, 0},
	} {
		b := beside{limit: c.limit, beat: wire.Beat{Period: beatPeriod, CPU: c.cpu}}
		if got, want := b.beats(), (wire.Beat{Period: beatPeriod, CPU: c.want}); got != want {
			t.Errorf("with limits of %v, and %v for a CPU: %+v", c.limit, c.cpu, got)
		}
	}
}

// TestLockFile checks that only one process has the lock, until it releases it, and that only its user may try to.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "metal.lock")
	unlock, err := lockFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFile(path); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("the second: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if unlock, err = lockFile(path); err != nil {
		t.Fatalf("once it has ended: %v", err)
	}
	defer unlock()
	if s, err := os.Stat(path); err != nil || s.Mode() != 0o600 {
		t.Errorf("%v, %v", s.Mode(), err)
	}
	if filepath.Dir(filepath.Dir(metalLock)) != "/run" {
		t.Errorf("%s is not where only root may make a file", metalLock)
	}
}
