package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

// TestCrashLoop checks that a pair that does not stay protected waits longer each time, up
// to a bound, and that the pauses start anew if it does.
func TestCrashLoop(t *testing.T) {
	var c crashLoop
	now := time.Unix(1000, 0)
	if p := c.pause(now); p != 0 {
		t.Errorf("the first pause is %v", p)
	}
	var pauses []time.Duration
	for range 10 {
		c.protected(now)
		now = now.Add(calm - time.Second)
		pauses = append(pauses, c.pause(now))
	}
	for i, p := range pauses {
		if want := min(time.Second<<i, maxPause); p != want {
			t.Errorf("pause %d is %v, want %v", i, p, want)
		}
	}
	c.protected(now)
	if p := c.pause(now.Add(calm)); p != 0 {
		t.Errorf("after a calm time the pause is %v", p)
	}
	c.failed()
	c.failed()
	if p := c.pause(now); p != 2*time.Second {
		t.Errorf("after two attempts that failed the pause is %v", p)
	}
}

// graveyard returns a supervisor that knows nothing of a dead side but its record, like a
// supervisor that was restarted.
func graveyard(t *testing.T) *Supervisor {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root.img")
	s := &Supervisor{
		Pair:    &pair.Pair{Name: "p", Partitions: [2]pair.Partition{{Name: "left", Root: root}, {Name: "right"}}},
		options: Options{Dir: dir, Log: io.Discard}, dir: &RunDir{Path: dir},
		holds: make(map[string]*fence.Hold), roots: make(map[string]*fence.Hold), lost: make(map[string]string),
	}
	s.options.Rescue = func(ctx context.Context, disk, memory string) error {
		if disk != root || memory != s.dir.RAM("left") {
			t.Errorf("%s is to be rescued from %s", disk, memory)
		}
		return ctx.Err()
	}
	for path, text := range map[string]string{root: strings.Repeat("root", 128), s.dir.RAM("left"): "memory"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.dir.Write(&Record{Pair: "p", Active: "right", Saved: true}); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestBury checks that the reasons why a dead side's memory is needed outlive the supervisor and
// each attempt, and that its partition is not cleared before.
func TestBury(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		why, root string
		kept      string // the reason; empty if no memory is kept
	}{
		"nothing left": {},
		"refused":      {why: "2 things", kept: "2 things"},
		"root disk":    {root: "root.img"},
		"both":         {why: "2 things", root: "root.img", kept: "2 things"},
	} {
		t.Run(name, func(t *testing.T) {
			s := graveyard(t)
			if tc.why+tc.root != "" {
				root := tc.root
				if root != "" {
					root = s.Pair.Partitions[0].Root
				}
				if err := s.dir.Write(&Record{Pair: "p", Saved: true, Dead: &DeadSide{Name: "left", Root: root, Why: tc.why}}); err != nil {
					t.Fatal(err)
				}
			}
			if want := tc.why+tc.root != ""; s.dir.AtStake() != want {
				t.Errorf("at stake: %v", !want)
			}
			if tc.root != "" {
				if err := s.bury(ended, 0); !errors.Is(err, context.Canceled) {
					t.Errorf("a rescue that was ended: %v", err)
				}
				said := (&Unsaved{Dir: s.dir.Path, Record: s.dir.Record}).Error()
				if b, err := os.ReadFile(s.dir.RAM("left")); string(b) != "memory" || !s.dir.AtStake() || !strings.Contains(said, s.dir.RAM("left")+" is kept: ") {
					t.Errorf("it is gone: %q, %v, %s", b, err, said)
				}
				if s.roots[s.Pair.Partitions[0].Root] == nil {
					t.Error("the root disk is not held")
				}
			}
			if tc.root != "" {
				rescue := s.options.Rescue
				s.options.Rescue = func(context.Context, string, string) error { return fmt.Errorf("write: %w", takeover.ErrInBetween) }
				if err := s.bury(t.Context(), 0); !errors.Is(err, takeover.ErrInBetween) || s.dead() == nil || s.dead().Root == "" {
					t.Errorf("a root disk that is in between: %v, %+v", err, s.dead())
				}
				if _, err := os.Stat(s.dir.RAM("left")); err != nil {
					t.Error(err)
				}
				s.options.Rescue = rescue
			}
			if err := s.bury(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(s.dir.RAM("left")); !errors.Is(err, os.ErrNotExist) || s.dead() != nil {
				t.Errorf("it is not buried: %v, %+v", err, s.dead())
			}
			got := ""
			for _, k := range s.dir.Record.Kept {
				b, _ := os.ReadFile(k.File)
				got += k.Why + string(b)
			}
			if want := map[bool]string{true: tc.kept + "memory"}[tc.kept != ""]; got != want || s.dir.AtStake() != (tc.kept != "") {
				t.Errorf("kept: %q, want %q", got, want)
			}
		})
	}
}

// TestBuryUnrescued checks that what could not be brought to a root disk is kept, if there is room for it beside the
// memory of the next side.
func TestBuryUnrescued(t *testing.T) {
	for _, tc := range []struct {
		memory uint64
		why    string // the reason so far
		kept   string
	}{
		{0, "", "memory: it booted again without what its root disk, ROOT, lacks: root disk of partition left: no room"},
		{0, "2 things", "memory: 2 things; it booted again without what its root disk, ROOT, lacks: root disk of partition left: no room"},
		{1 << 62, "", ""},
		{1 << 62, "2 things", "memory: 2 things"},
	} {
		s := graveyard(t)
		var told string
		s.options.Trouble = func(n wire.TroubleNotice) { told = n.What }
		s.options.Rescue = func(context.Context, string, string) error { return errors.New("no room") }
		s.Pair.Partitions[0].Memory = tc.memory
		root := s.Pair.Partitions[0].Root
		if err := s.dir.Write(&Record{Pair: "p", Saved: true, Dead: &DeadSide{Name: "left", Root: root, Why: tc.why}}); err != nil {
			t.Fatal(err)
		}
		if err := s.bury(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		kept := ""
		for _, k := range s.Kept() {
			b, _ := os.ReadFile(k.File)
			kept += string(b) + ": " + strings.ReplaceAll(k.Why, root, "ROOT")
		}
		if kept != tc.kept || strings.Contains(told, "is lost") != (tc.memory > 0) || !strings.Contains(told, "no room") {
			t.Errorf("with %d bytes of memory, %q before: kept %q; told %q", tc.memory, tc.why, kept, told)
		}
	}
}

// TestKeptTwice checks that memory that was given a name, but not recorded, by a supervisor that was killed does not
// get a second name, and that the memory of another death keeps its own.
func TestKeptTwice(t *testing.T) {
	s := graveyard(t)
	name := func(n int) string { return filepath.Join(s.dir.Path, fmt.Sprintf("kept-%d-left.ram", n)) }
	if err := errors.Join(os.WriteFile(name(1), []byte("before"), 0o600), os.Link(s.dir.RAM("left"), name(2))); err != nil {
		t.Fatal(err)
	}
	if err := s.dir.Write(&Record{Pair: "p", Saved: true, Dead: &DeadSide{Name: "left", Why: "2 things"}}); err != nil {
		t.Fatal(err)
	}
	if err := s.bury(t.Context(), 0); err != nil || len(s.Kept()) != 1 || s.Kept()[0].File != name(2) {
		t.Errorf("%v, kept %+v", err, s.Kept())
	}
	for path, want := range map[string]string{name(1): "before", name(2): "memory"} {
		if b, err := os.ReadFile(path); string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if _, err := os.Stat(name(3)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it has a third name: %v", err)
	}
}

// TestRootUnheld checks that we go on if somebody else has a root disk when it is to be held
// again, and that nothing boots from the disk.
func TestRootUnheld(t *testing.T) {
	s := graveyard(t)
	root := s.Pair.Partitions[0].Root
	if err := s.dir.Write(&Record{Pair: "p", Saved: true, Dead: &DeadSide{Name: "left", Root: root}}); err != nil {
		t.Fatal(err)
	}
	other, err := fence.Keep(root)
	if err != nil {
		t.Fatal(err)
	}
	s.active = &side{index: 1}
	if err := s.protect(t.Context()); err == nil || !strings.Contains(err.Error(), root) {
		t.Errorf("%v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.holdRoot(root, fence.Keep); err != nil || s.roots[root] == nil {
		t.Errorf("%v", err)
	}
}

// TestProtectDead checks that attempts to protect a living active side have pauses between them. When the
// side has died, nobody is served until an attempt succeeds, so the next one is made at once.
func TestProtectDead(t *testing.T) {
	s := graveyard(t)
	if err := os.Remove(s.Pair.Partitions[0].Root); err != nil {
		t.Fatal(err)
	}
	s.active = &side{index: 1, name: "right", process: &partition.Process{Spec: s.spec(1, "")}}
	synctest.Test(t, func(t *testing.T) {
		s.hurry = make(chan struct{}, 1)
		s.crashLoop.wait = maxPause
		ctx, cancel := context.WithCancel(t.Context())
		failed := 0
		go func() { _ = s.Protect(ctx, func(error) { failed++ }) }() // it ends with ctx
		time.Sleep(maxPause / 2)
		if failed > 0 {
			t.Errorf("%d attempts in half a pause", failed)
		}
		s.Freeze()
		synctest.Wait()
		if failed != 1 {
			t.Errorf("%d attempts at the death", failed)
		}
		cancel()
	})
}

// TestUnrecorded checks that a dead side is not buried before it is recorded why its memory is needed.
func TestUnrecorded(t *testing.T) {
	s := graveyard(t)
	blocked := filepath.Join(s.dir.Path, recordName+".new")
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.needDead(DeadSide{Name: "left", Why: "not durable yet"}, func(r *Record) { r.Active = "right" }); err == nil {
		t.Fatal("it was recorded")
	}
	if err := s.needDead(DeadSide{Name: "left", Why: "2 things"}, func(*Record) {}); err == nil {
		t.Fatal("it was recorded")
	}
	if err := s.bury(t.Context(), 0); err == nil {
		t.Error("it was buried")
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	if err := s.bury(t.Context(), 0); err != nil || len(s.Kept()) != 1 || s.Kept()[0].Why != "2 things" {
		t.Errorf("%v, kept %+v", err, s.Kept())
	}
	if r := s.recorded(); r.Active != "right" {
		t.Errorf("it is not recorded who serves: %+v", r)
	}
}

// TestUnrecordedStop checks that what could not be recorded is recorded with the next change, whatever that is.
func TestUnrecordedStop(t *testing.T) {
	s := graveyard(t)
	blocked := filepath.Join(s.dir.Path, recordName+".new")
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.needDead(DeadSide{Name: "left", Why: "2 things"}, func(r *Record) { r.Saved = false }); err == nil {
		t.Fatal("it was recorded")
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	if err := s.record(func(r *Record) { r.Saved = true }); err != nil { // as Stop does
		t.Fatal(err)
	}
	var unsaved *Unsaved
	if err := s.Close(); !errors.As(err, &unsaved) || !s.recorded().Saved {
		t.Errorf("%v, %+v", err, s.recorded())
	}
	if b, err := os.ReadFile(s.dir.RAM("left")); string(b) != "memory" {
		t.Errorf("the only memory with it is gone: %v", err)
	}
}

// TestCloseRoots checks that the end of a pair does not lose what a root disk lacks, of a side that was taken
// over from or one that was not powered off: if the rescue fails, the memory stays, and Close returns an error.
func TestCloseRoots(t *testing.T) {
	broken := errors.New("no room")
	for name, tc := range map[string]struct {
		runs, ended, discarded bool
		rescue                 error
		kept                   bool
	}{
		"dead":                         {},
		"dead, no rescue":              {rescue: broken, kept: true},
		"dead, in between":             {rescue: takeover.ErrInBetween, kept: true},
		"not powered off":              {runs: true},
		"dead before it is asked":      {runs: true, ended: true},
		"dead before, no rescue":       {runs: true, ended: true, rescue: broken, kept: true},
		"not powered off, no rescue":   {runs: true, rescue: broken, kept: true},
		"not powered off, not wanted":  {runs: true, rescue: broken, discarded: true},
		"not powered off, in between ": {runs: true, rescue: takeover.ErrInBetween, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it waits for an agent
			s := graveyard(t)
			if err := s.dir.take(); err != nil {
				t.Fatal(err)
			}
			rescued := false
			s.options.Rescue = func(context.Context, string, string) error {
				rescued = true
				if !s.dir.AtStake() {
					t.Error("nothing is at stake while it is rescued")
				}
				return tc.rescue
			}
			if tc.runs {
				s.sides[0] = running(t, s)
				if err := s.record(s.saved); err != nil { // as Stop does
					t.Fatal(err)
				}
			} else if err := s.dir.Write(&Record{Pair: "p", Saved: true, Dead: &DeadSide{Name: "left", Root: s.Pair.Partitions[0].Root}}); err != nil {
				t.Fatal(err)
			}
			if tc.ended {
				s.sides[0].process.Kill()
				<-s.sides[0].process.Ended()
			}
			if tc.discarded {
				if err := s.Discard(); err != nil {
					t.Fatal(err)
				}
			}
			err := s.Close()
			var unsaved *Unsaved
			if errors.As(err, &unsaved) != tc.kept || !errors.Is(err, tc.rescue) && !tc.discarded || rescued == tc.discarded {
				t.Errorf("%v; rescued: %v", err, rescued)
			}
			if _, err := os.Stat(s.dir.RAM("left")); errors.Is(err, os.ErrNotExist) == tc.kept {
				t.Errorf("its memory: %v", err)
			}
		})
	}
}

// running returns a side of partition 0 whose agent does not answer, so that its system does not end.
func running(t *testing.T, s *Supervisor) *side {
	t.Helper()
	_, id := stopped(t)
	spec := s.spec(0, "")
	for path, n := range map[string]int{spec.BeatPath(): liveness.PageBytes, spec.RAMPath(): 4 << 20} {
		if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.record(func(r *Record) { r.Frozen = "left" }); err != nil {
		t.Fatal(err)
	}
	sd, err := s.reconnectSide(t.Context(), 0, RecordSide{Name: "left", Identity: id})
	if err == nil || sd.process == nil {
		t.Fatalf("%v", err)
	}
	sd.greeting.BootID = "boot"
	return sd
}

// TestUnopened checks that everything of a dead side is refused while its memory cannot be opened, and
// nothing once it can.
func TestUnopened(t *testing.T) {
	s := graveyard(t)
	spec := s.spec(0, "")
	s.active, s.Pair.Takeover.Salvage = &side{name: "left", process: &partition.Process{Spec: spec}}, true
	for _, there := range []bool{false, true} {
		if !there {
			if err := os.Remove(spec.RAMPath()); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(spec.RAMPath(), make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		o := s.salvagingOptions()
		if o.Salvager == nil {
			t.Fatal("nobody looks for what is unsaved")
		}
		if _, is := o.Salvager.(unopened); is == there {
			t.Errorf("its memory is there: %v; it is opened: %v", there, !is)
		} else if is {
			if _, err := o.Salvager.Examine(nil); err == nil {
				t.Error("nothing is refused")
			}
		}
	}
	s.Pair.Takeover.Salvage = false
	if o := s.salvagingOptions(); o.Salvager != nil {
		t.Error("something is salvaged that nobody wants")
	}
	if err := s.closeMorgue(); err != nil {
		t.Error(err)
	}
}

// TestUnprepared checks that each attempt looks for an active kernel that was not found, and that a
// dead side is taken over from in any case.
func TestUnprepared(t *testing.T) {
	s := graveyard(t)
	spec := s.spec(0, "")
	if err := os.WriteFile(spec.RAMPath(), make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	told := 0
	s.options.Trouble = func(wire.TroubleNotice) { told++ }
	s.active = &side{name: "left", process: &partition.Process{Spec: spec}}
	for range 2 {
		if err := s.prepareFor(t.Context()); err == nil || told > 0 {
			t.Errorf("a kernel was found in zeros; %d troubles", told)
		}
	}
	s.frozen = true
	if err := s.prepareFor(t.Context()); err != nil || told != 1 {
		t.Errorf("%v, %d troubles", err, told)
	}
	if err := s.closeMorgue(); err != nil {
		t.Error(err)
	}
}
