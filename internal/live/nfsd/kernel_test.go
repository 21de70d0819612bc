package nfsd

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestBoundLockGrace: lockd's grace ends when the configured one is over, and not after the server has stopped.
func TestBoundLockGrace(t *testing.T) {
	for name, tt := range map[string]struct {
		stop time.Duration
		want bool
	}{
		"serves": {time.Hour, true}, "stopped": {time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.stop)
				defer cancel()
				began, ended := time.Now(), false
				err := boundLockGrace(ctx, 90*time.Second, func() error {
					ended = true
					return nil
				})
				if err != nil || ended != tt.want || ended && time.Since(began) != 90*time.Second {
					t.Errorf("%v, ended %v after %v", err, ended, time.Since(began))
				}
			})
		})
	}
}

// TestGraceSpent: a server begins again if what is left of lockd's grace is shorter than the configured grace, and
// shorter than longLockGrace.
func TestGraceSpent(t *testing.T) {
	for _, tt := range []struct {
		ago, grace time.Duration
		want       bool
	}{
		{time.Second, 10 * time.Second, false}, {229 * time.Second, 10 * time.Second, false}, {231 * time.Second, 10 * time.Second, true},
		{time.Second, time.Hour, false}, {59 * time.Second, time.Hour, false}, {61 * time.Second, time.Hour, true},
	} {
		if got := graceSpent(tt.ago, tt.grace); got != tt.want {
			t.Errorf("begun %v ago, grace %v: %v", tt.ago, tt.grace, got)
		}
	}
}
