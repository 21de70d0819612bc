package supervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover"
)

// TestUnstored checks that what was brought to a disk counts as stored only after a sync that succeeded: of the heir or,
// if that has died, of this machine.
func TestUnstored(t *testing.T) {
	broken := errors.New("sync: connection lost")
	for name, tc := range map[string]struct {
		synced, ended error
		fails         bool // a sync of this machine does
		want          bool
	}{
		"synced":                             {},
		"not synced":                         {synced: broken, want: true},
		"the heir has died":                  {synced: broken, ended: errors.New("it died")},
		"the heir has died, and a disk":      {synced: broken, ended: errors.New("it died"), fails: true, want: true},
		"a flush has failed":                 {synced: broken, ended: errNoFlush, want: true},
		"synced, and the heir died later on": {ended: errNoFlush},
	} {
		s := twoDisks(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		if tc.ended != nil {
			cancel(tc.ended)
		}
		if tc.fails {
			s.holds["b"].Close()
		}
		if err := s.unstored(ctx, tc.synced); (err != nil) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
		cancel(nil)
	}
}

// TestRefuseUnstored checks that a takeover that failed leaves the dead side's memory at stake if a disk that was brought
// up to date from it may lack something.
func TestRefuseUnstored(t *testing.T) {
	for name, tc := range map[string]struct {
		ended error
		fails bool // a sync of disk b does
		a, b  bool // whether the disk lacks something
	}{
		"stored":             {},
		"a sync fails":       {fails: true, b: true},
		"a flush has failed": {ended: errNoFlush, a: true, b: true},
	} {
		for _, p := range []takeover.Progress{takeover.Applied, takeover.HandedOver} {
			s := twoDisks(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(tc.ended)
			if tc.fails {
				s.holds["b"].Close()
			}
			if err := s.record(func(r *Record) {
				r.Disks = []RecordDisk{{Name: "a", Progress: p, Refused: new(bool)}, {Name: "b", Progress: p, Refused: new(bool)}}
			}); err != nil {
				t.Fatal(err)
			}
			err := s.refuseUnstored(ctx)
			applied := p == takeover.Applied // otherwise recover brings it there from the dead side's memory
			d := s.recorded().Disks
			if d[0].Lacks() != (tc.a && applied) || d[1].Lacks() != (tc.b && applied) || (err != nil) != (tc.b && applied) {
				t.Errorf("%s, %s: %+v, %v", name, p, d, err)
			}
		}
	}
}

// twoDisks returns a supervisor that holds disks a and b.
func twoDisks(t *testing.T) *Supervisor {
	s := graveyard(t)
	for _, name := range []string{"a", "b"} {
		path := filepath.Join(s.dir.Path, name)
		if err := os.WriteFile(path, make([]byte, 512), 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := fence.Keep(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		s.Pair.Disks, s.holds[name] = append(s.Pair.Disks, pair.Disk{Name: name, Image: name}), h
	}
	return s
}
