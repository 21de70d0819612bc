package takeover

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

// stand is a Machine that records what is asked of it, and fails where it is told to.
type stand struct {
	mu      sync.Mutex
	calls   []string
	fail    map[string]error
	staging []byte
	plan    []wire.File
	result  wire.ApplyResult
	lost    []uint64 // what a check moved to lost+found
	named   wire.NameRequest
	names   wire.NameResult
	peers   wire.Peers // that it was acquainted with
	told    wire.TellResult
	unready []wire.Unready
	hangs   bool // when it is to start services

	imageFails error // of each write to an image
}

// WriteAt, ReadAt and Sync are those of the stand's images.
func (s *stand) WriteAt(b []byte, _ int64) (int, error) { return len(b), s.imageFails }
func (s *stand) ReadAt(b []byte, _ int64) (int, error)  { return len(b), nil }

type standImage struct{ *stand }

func (i standImage) Sync() error { return i.imageFails }

func (s *stand) did(call string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
	return s.fail[call]
}

func (s *stand) Fence(context.Context) error                  { return s.did("fence") }
func (s *stand) Image(context.Context, string) (Image, error) { return standImage{s}, s.did("image") }
func (s *stand) Check(context.Context, string) (*wire.Check, error) {
	return &wire.Check{Output: "repaired", Lost: s.lost}, s.did("check here")
}
func (s *stand) HandOver(context.Context, string) error { return s.did("hand over") }
func (s *stand) Mount(_ context.Context, _ string, check bool) (*wire.Check, error) {
	if check {
		return &wire.Check{Output: "repaired", Lost: s.lost}, s.did("checked mount")
	}
	return nil, s.did("mount")
}
func (s *stand) Name(_ context.Context, r wire.NameRequest) (wire.NameResult, error) {
	s.named = r
	return s.names, s.did("name")
}
func (s *stand) Staging(int64) ([]byte, error) { return s.staging, s.did("staging") }
func (s *stand) Apply(_ context.Context, r wire.ApplyRequest) (wire.ApplyResult, error) {
	var err error
	if s.plan, err = wire.DecodePlan(s.staging[r.Plan : r.Plan+r.Len]); err != nil {
		return s.result, err
	}
	return s.result, s.did("apply")
}
func (s *stand) Start(ctx context.Context, _ time.Duration) ([]wire.Unready, error) {
	if s.hangs {
		<-ctx.Done()
		return nil, errors.New("link closed")
	}
	return s.unready, s.did("start")
}
func (s *stand) GoLive(context.Context) error { return s.did("go live") }
func (s *stand) Sync(context.Context) error   { return s.did("sync") }
func (s *stand) Acquaint(_ context.Context, p wire.Peers) (wire.AcquaintResult, error) {
	s.peers = p
	return wire.AcquaintResult{Neighbours: len(p.Neighbours)}, s.did("acquaint")
}
func (s *stand) Announce(context.Context) error { return s.did("announce") }
func (s *stand) Tell(_ context.Context, rate int) (wire.TellResult, error) {
	return s.told, s.did(fmt.Sprintf("tell %d", rate))
}

// before says whether call a came before call b.
func (s *stand) before(a, b string) bool {
	i, j := -1, -1
	for n, c := range s.calls {
		if c == a && i < 0 {
			i = n
		}
		if c == b {
			j = n
		}
	}
	return i >= 0 && j >= 0 && i < j
}

// body is a Salvager and the Remains that it finds.
type body struct {
	examine, finish, gather error
	writes                  bool // it writes to the image
	committed               bool // it writes after the commit
	commit                  Commit
	found                   Gathered
	m                       *stand
}

func (b *body) Finish(image Image) (Commit, error) {
	if b.writes {
		_, err := image.WriteAt([]byte{1}, 0)
		if b.committed {
			return b.commit, nil
		}
		return b.commit, fmt.Errorf("append to the log: %w", err)
	}
	return b.commit, errors.Join(b.m.did("finish"), b.finish)
}

func (b *body) Examine(Image) (Remains, error) {
	b.m.did("examine")
	return b, b.examine
}

func (b *body) Names(found *wire.Check) wire.NameRequest {
	return wire.NameRequest{Check: found, Files: []wire.Named{{Inode: 171, Paths: [][]byte{[]byte("a")}}}}
}

func (b *body) Refusal(f wire.Failure) Refusal {
	return Refusal{Path: fmt.Sprintf("file %d", f.Inode), Inode: f.Inode, Reason: f.Reason}
}

func (b *body) Size() int64 { return b.found.Used }

func (b *body) Gather(staging []byte) (Gathered, error) {
	copy(staging, "unsaved")
	return b.found, b.gather
}

func play(m *stand, o Options) (*Serving, error) {
	return Run(context.Background(), m, NewTimeline(time.Now()), o)
}

func newStand() *stand { return &stand{fail: make(map[string]error), staging: make([]byte, 1<<20)} }

func someFiles() Gathered {
	return Gathered{Files: []wire.File{{Inode: 12, Size: 7, Runs: []wire.Run{{Len: 7}}}}, Used: 4096, Bytes: 7}
}

func TestOrderOfSafety(t *testing.T) {
	m := newStand()
	m.result = wire.ApplyResult{Files: 1, Bytes: 7}
	r, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, found: someFiles()}, SyncFirst: true})
	if err != nil {
		t.Fatal(err)
	}
	if m.calls[0] != "fence" {
		t.Errorf("began with %s", m.calls[0])
	}
	order := []string{"examine", "finish", "hand over", "mount", "apply", "sync", "start", "go live"}
	for i := 1; i < len(order); i++ {
		if !m.before(order[i-1], order[i]) {
			t.Errorf("%s did not come before %s: %v", order[i-1], order[i], m.calls)
		}
	}
	if r.Files != 1 || r.Bytes != 7 || !r.Durable {
		t.Errorf("report %+v", r)
	}
	if string(m.staging[:7]) != "unsaved" || m.plan[0].Inode != 12 {
		t.Errorf("applied plan %+v", m.plan)
	}
}

func TestNothingIsTouchedUnfenced(t *testing.T) {
	m := newStand()
	m.fail["fence"] = errors.New("cannot be killed")
	if _, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m}}); !errors.Is(err, m.fail["fence"]) {
		t.Errorf("error %v", err)
	}
	if len(m.calls) != 1 {
		t.Errorf("went on without a fence: %v", m.calls)
	}
}

// TestRefusedSalvage: what salvage refuses is in the report, nothing of it is
// applied, and the service goes on.
func TestRefusedSalvage(t *testing.T) {
	wrong := errors.New("the disk was mounted since")
	for name, b := range map[string]*body{
		"examine": {examine: wrong},
		"gather":  {gather: wrong, found: someFiles()},
	} {
		m := newStand()
		b.m = m
		r, err := play(m, Options{Disks: []string{"data"}, Salvager: b})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Refused) != 1 || r.Refused[0].Reason != wrong.Error() {
			t.Errorf("%s: refused %v", name, r.Refused)
		}
		if m.plan != nil || m.calls[len(m.calls)-1] != "go live" {
			t.Errorf("%s: calls %v", name, m.calls)
		}
	}
}

// TestRefusedCommit: without the last commit, nothing is brought over: a file would
// get a part of what it was to be.
func TestRefusedCommit(t *testing.T) {
	m := newStand()
	wrong := &GivenUp{errors.New("the log does not fit"), []Refusal{{Path: "a", Inode: 12, Reason: "as a crash leaves it"}}}
	r, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, finish: wrong, found: someFiles()}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Refusal{{Disk: "data", Reason: "the last commit: the log does not fit"}, {Disk: "data", Path: "a", Inode: 12, Reason: "as a crash leaves it"}}
	if !reflect.DeepEqual(r.Refused, want) || m.plan != nil || m.calls[len(m.calls)-1] != "go live" {
		t.Errorf("refused %v, calls %v", r.Refused, m.calls)
	}
}

func TestRefusalText(t *testing.T) {
	for want, r := range map[string]Refusal{
		"disk data: etc/passwd: torn":      {Disk: "data", Path: "etc/passwd", Inode: 12, Reason: "torn"},
		"\"a\\nb\": torn":                  {Path: "a\nb", Reason: "torn"},
		"\"\\xff\\x1b[2J\": torn":          {PathBase64: []byte("\xff\x1b[2J"), Reason: "torn"},
		"inode 12: torn":                   {Inode: 12, Reason: "torn"},
		"disk data: the last commit: torn": {Disk: "data", Reason: "the last commit: torn"},
	} {
		if got := r.String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestBrokenDisk: a disk that takes no writes is not handed over: what is unsaved waits in
// memory until it is mended.
func TestBrokenDisk(t *testing.T) {
	for _, committed := range []bool{false, true} {
		m := newStand()
		m.imageFails = errors.New("no space left on device")
		_, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, writes: true, committed: committed, found: someFiles()}})
		if !errors.Is(err, m.imageFails) || slices.ContainsFunc(m.calls, func(c string) bool { return strings.HasPrefix(c, "hand over") }) {
			t.Errorf("committed %v: error %v, calls %v", committed, err, m.calls)
		}
	}
}

// TestAbsentDisk: a disk that cannot be opened is not mounted either: it may be there a moment later, and then what is
// unsaved could not be brought to it any more.
func TestAbsentDisk(t *testing.T) {
	m := newStand()
	m.fail["image"] = errors.New("no disk has this serial number")
	_, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, found: someFiles()}})
	if !errors.Is(err, m.fail["image"]) || !slices.Equal(m.calls, []string{"fence", "image"}) {
		t.Errorf("error %v, calls %v", err, m.calls)
	}
}

// TestStopIfRefused: the policy makes a takeover fail while the disk is as the dead side left it. A
// refusal of single files does not.
func TestStopIfRefused(t *testing.T) {
	wrong := errors.New("the journal was aborted")
	for name, b := range map[string]*body{"examine": {examine: wrong}, "commit": {finish: &GivenUp{wrong, []Refusal{{Inode: 12}}}, found: someFiles()}} {
		m := newStand()
		b.m = m
		_, err := play(m, Options{Disks: []string{"data"}, Salvager: b, StopIfRefused: true})
		if err == nil || !strings.Contains(err.Error(), wrong.Error()) {
			t.Errorf("%s: error %v", name, err)
		}
		if slices.ContainsFunc(m.calls, func(c string) bool { return strings.HasPrefix(c, "hand over") || strings.HasPrefix(c, "mount") }) {
			t.Errorf("%s: calls %v", name, m.calls)
		}
	}
	m := newStand()
	if _, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, gather: wrong, found: someFiles()}, StopIfRefused: true}); err != nil {
		t.Errorf("gather: %v", err)
	}
}

// TestCheckBeforeMount: a file system that cannot be proven sound is checked, and what the check
// said is in the report.
func TestCheckBeforeMount(t *testing.T) {
	for _, tt := range []struct {
		here  error // of a check on this machine
		order []string
	}{
		{nil, []string{"check here", "hand over", "mount", "apply"}},
		{fmt.Errorf("no e2fsck: %w", errors.ErrUnsupported), []string{"check here", "hand over", "checked mount", "apply"}},
	} {
		m := newStand()
		m.fail["check here"] = tt.here
		b := &body{m: m, commit: Commit{Check: "2 operations were in flight", Blocks: 7}, found: someFiles()}
		r, err := play(m, Options{Disks: []string{"data"}, Salvager: b})
		if err != nil {
			t.Fatal(err)
		}
		want := Commit{Disk: "data", Check: b.commit.Check, Blocks: 7, Found: "repaired"}
		if !reflect.DeepEqual(r.Commits, []Commit{want}) {
			t.Errorf("commits %+v", r.Commits)
		}
		for i := range tt.order[1:] {
			if !m.before(tt.order[i], tt.order[i+1]) {
				t.Errorf("%s, then %s: %v", tt.order[i], tt.order[i+1], m.calls)
			}
		}
		if here := tt.here == nil; here == slices.Contains(m.calls, "checked mount") || here != slices.Contains(m.calls, "mount") {
			t.Errorf("calls %v", m.calls)
		}
	}
}

// TestCheckFails: a file system that e2fsck cannot repair is not mounted.
func TestCheckFails(t *testing.T) {
	m := newStand()
	m.fail["check here"] = errors.New("e2fsck ended with status 4")
	b := &body{m: m, commit: Commit{Check: "2 operations were in flight"}, found: someFiles()}
	if _, err := play(m, Options{Disks: []string{"data"}, Salvager: b}); !errors.Is(err, m.fail["check here"]) || slices.Contains(m.calls, "hand over") {
		t.Errorf("%v, calls %v", err, m.calls)
	}
}

// TestNamesBeforeFiles: an inode that a check has left without its name gets it before files are
// written, and one that cannot be named is in the report.
func TestNamesBeforeFiles(t *testing.T) {
	m := newStand()
	m.lost = []uint64{171, 172}
	m.names = wire.NameResult{
		Acts:     []wire.Act{{Kind: wire.ActRenamed, Inode: 171}},
		Failures: []wire.Failure{{Inode: 172, Reason: "no name"}},
	}
	b := &body{m: m, commit: Commit{Check: "2 operations were in flight"}, found: someFiles()}
	r, err := play(m, Options{Disks: []string{"data"}, Salvager: b})
	if err != nil {
		t.Fatal(err)
	}
	if !m.before("check here", "name") || !m.before("mount", "name") || !m.before("name", "apply") || !m.before("apply", "start") {
		t.Errorf("calls %v", m.calls)
	}
	if m.named.Disk != "data" || len(m.named.Files) != 1 || !reflect.DeepEqual(m.named.Check.Lost, m.lost) {
		t.Errorf("asked for %+v", m.named)
	}
	if !reflect.DeepEqual(r.Acts, m.names.Acts) || len(r.Refused) != 1 || r.Refused[0].Reason != "no name" {
		t.Errorf("acts %v, refused %v", r.Acts, r.Refused)
	}
}

// TestGoneIsNotMissing: a file that was removed with an operation in flight is no failure; another
// inode with its number is one.
func TestGoneIsNotMissing(t *testing.T) {
	m := newStand()
	m.lost = []uint64{171}
	m.names = wire.NameResult{Acts: []wire.Act{{Kind: wire.ActGone, Inode: 12, Generation: 3}, {Kind: wire.ActFinished, Inode: 13, Generation: 3}}}
	m.result = wire.ApplyResult{Failures: []wire.Failure{
		{Inode: 12, Generation: 3, Reason: "gone"}, {Inode: 12, Generation: 4, Reason: "other"}, {Inode: 13, Generation: 3, Reason: "renamed"},
	}}
	r, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, commit: Commit{Check: "why"}, found: someFiles()}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Refusal{{Disk: "data", Path: "file 12", Inode: 12, Reason: "other"}, {Disk: "data", Path: "file 13", Inode: 13, Reason: "renamed"}}
	if !reflect.DeepEqual(r.Refused, want) {
		t.Errorf("refused %v, want %v", r.Refused, want)
	}
}

func TestFailuresOfFilesAreReported(t *testing.T) {
	m := newStand()
	m.result = wire.ApplyResult{Failures: []wire.Failure{{Inode: 12, Generation: 3, Reason: "no space"}}}
	r, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, found: someFiles()}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Refusal{{Disk: "data", Path: "file 12", Inode: 12, Reason: "no space"}}
	if !reflect.DeepEqual(r.Refused, want) {
		t.Errorf("refused %v, want %v", r.Refused, want)
	}
}

// TestMoreFailuresThanNamed: refusals that an answer had no room for are counted all the same.
func TestMoreFailuresThanNamed(t *testing.T) {
	m := newStand()
	m.lost = []uint64{171}
	m.names = wire.NameResult{MoreFailures: 2, MoreActs: 3}
	m.result = wire.ApplyResult{Acts: []wire.Act{{Kind: wire.ActCreated}}, MoreFailures: 5, MoreActs: 7}
	r, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, commit: Commit{Check: "why"}, found: someFiles()}})
	if err != nil {
		t.Fatal(err)
	}
	if r.Refusals() != 7 || len(r.Refused) != 0 || len(r.Acts) != 1 || r.MoreActs != 10 {
		t.Errorf("%d refused, acts %v and %d more", r.Refusals(), r.Acts, r.MoreActs)
	}
	r.Refused = slices.Repeat([]Refusal{{Inode: 12, Reason: strings.Repeat("why ", 1<<10)}}, 1<<16)
	r.Fit()
	if b, err := json.Marshal(r); err != nil || len(b) > 8<<20 || len(r.Refused) == 0 || r.Refusals() != 7+1<<16 {
		t.Errorf("%d bytes with %d refused, of %d, %v", len(b), len(r.Refused), r.Refusals(), err)
	}
}

// TestNamesThatDoNotFit: names that cannot be asked for stay as the check left them, and that is
// reported. What is unsaved is brought over.
func TestNamesThatDoNotFit(t *testing.T) {
	m := newStand()
	m.lost = []uint64{171}
	m.fail["name"] = fmt.Errorf("call name: %w: a message over the limit", wire.ErrUnsent)
	r, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, commit: Commit{Check: "why"}, found: someFiles()}})
	if err != nil || len(r.Refused) != 1 || r.Refused[0].Disk != "data" || !slices.Contains(m.calls, "apply") {
		t.Errorf("%+v, calls %v, %v", r, m.calls, err)
	}
}

// TestNoServiceOnAFailedStep: when a step after the fence fails, no later step in the order of
// safety is taken.
func TestNoServiceOnAFailedStep(t *testing.T) {
	order := []string{"hand over", "mount", "apply", "start", "go live"}
	for i, step := range order[:4] {
		m := newStand()
		m.fail[step] = errors.New("broken")
		_, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, found: someFiles()}})
		if !errors.Is(err, m.fail[step]) {
			t.Errorf("failed %s: error %v", step, err)
		}
		for _, later := range order[i+1:] {
			if m.before(step, later) {
				t.Errorf("%s after a failed %s", later, step)
			}
		}
	}
}

// TestUnreadyServiceIsTold: a service that does not come up keeps nothing else from its clients.
func TestUnreadyServiceIsTold(t *testing.T) {
	m := newStand()
	m.unready = []wire.Unready{{Service: "db", Reason: "not within 45s"}}
	m.fail["go live"] = fmt.Errorf("%w: no bridge", ErrUnreached)
	r, err := play(m, Options{Disks: []string{"data"}})
	if err != nil || r.Unreached == "" || !m.has("go live") || !reflect.DeepEqual(r.Unready, m.unready) {
		t.Errorf("%v, calls %v", err, m.calls)
	}
}

// TestProgressIsRecorded: how far each disk has come is durable before it goes on, and
// a takeover that cannot record goes no further.
func TestProgressIsRecorded(t *testing.T) {
	order := []string{"fence", "record fenced", "finish", "record handed over", "hand over", "mount", "apply", "record applied", "start"}
	for n := -1; n < 3; n++ {
		m := newStand()
		recorded := 0
		o := Options{Disks: []string{"data"}, Salvager: &body{m: m, found: someFiles()}, Record: func(disk string, p Progress, refused bool) error {
			err := m.did("record " + string(p))
			if recorded == n {
				err = errors.New("no room")
			}
			if refused {
				t.Errorf("%s: something was refused", p)
			}
			recorded++
			return err
		}}
		_, err := play(m, o)
		if n < 0 {
			for i := 1; i < len(order); i++ {
				if err != nil || !m.before(order[i-1], order[i]) {
					t.Errorf("%s did not come before %s: %v, %v", order[i-1], order[i], m.calls, err)
				}
			}
			continue
		}
		last := []string{"record fenced", "record handed over", "record applied"}[n]
		if err == nil || m.calls[len(m.calls)-1] != last {
			t.Errorf("%v after %v", m.calls, err)
		}
	}
}

// TestRefusalIsRecorded: before the understudy sees a disk, it is durable that the disk lacks
// something which the dead memory has.
func TestRefusalIsRecorded(t *testing.T) {
	m := newStand()
	said := make(map[Progress]bool)
	o := Options{Disks: []string{"data"}, Salvager: &body{m: m, finish: errors.New("aborted")}, Record: func(_ string, p Progress, refused bool) error {
		said[p] = refused
		return nil
	}}
	_, err := play(m, o)
	if want := map[Progress]bool{Fenced: false, Given: true, Applied: true}; err != nil || !reflect.DeepEqual(said, want) {
		t.Errorf("%v, %v", err, said)
	}
}

// TestNoRoom: without room for what is unsaved, the disk is not handed over.
func TestNoRoom(t *testing.T) {
	m := newStand()
	m.fail["staging"] = errors.New("no space left on device")
	if _, err := play(m, Options{Disks: []string{"data"}, Salvager: &body{m: m, found: someFiles()}}); !errors.Is(err, m.fail["staging"]) || m.has("hand over") {
		t.Errorf("%v, calls %v", err, m.calls)
	}
}

// TestDeathOfTheUnderstudy: when the context ends, because the understudy died, the step under way
// fails with that reason.
func TestDeathOfTheUnderstudy(t *testing.T) {
	m := newStand()
	m.hangs = true
	ctx, cancel := context.WithCancelCause(context.Background())
	died := errors.New("the understudy died")
	time.AfterFunc(10*time.Millisecond, func() { cancel(died) })
	if _, err := Run(ctx, m, NewTimeline(time.Now()), Options{Disks: []string{"data"}}); !errors.Is(err, died) || m.has("go live") {
		t.Errorf("%v, calls %v", err, m.calls)
	}
}

// TestStepsHaveLimits: a step that hangs ends, with the limit as the reason.
func TestStepsHaveLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newStand()
		m.hangs = true
		_, err := Run(t.Context(), m, NewTimeline(time.Now()), Options{})
		if err == nil || !strings.Contains(err.Error(), "start services: not done within 2m0s") {
			t.Errorf("%v", err)
		}
	})
}

func TestSettle(t *testing.T) {
	m := newStand()
	r, err := play(m, Options{Disks: []string{"data"}})
	if err != nil || r.Durable {
		t.Fatalf("%+v, %v", r, err)
	}
	for range 2 {
		if err := r.Settle(context.Background()); err != nil || !r.Durable {
			t.Errorf("settled: %+v, %v", r, err)
		}
	}
	if n := strings.Count(strings.Join(m.calls, ","), "sync"); n != 1 {
		t.Errorf("synced %d times", n)
	}
}

func TestWriteSteps(t *testing.T) {
	steps := []Step{{"detect", 0, 10}, {"fence", 10, 20}, {"apply", 20, 100}, {"instant", 100, 100}}
	var b strings.Builder
	if err := WriteSteps(&b, steps, 10); err != nil {
		t.Fatal(err)
	}
	want := `detect       0.0     10.0 ms  |█         |
fence       10.0     20.0 ms  | █        |
apply       20.0    100.0 ms  |  ████████|
instant    100.0    100.0 ms  |         █|
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	if err := WriteSteps(io.Discard, []Step{{Name: "nothing"}}, 10); err != nil {
		t.Error(err)
	}
}

func TestWriteSVG(t *testing.T) {
	var b strings.Builder
	if err := WriteSVG(&b, "a < b", []Step{{"detect", 0, 10}, {"fence", 10, 420}}, 500); err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader(b.String()))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("no XML: %v\n%s", err, b.String())
		}
	}
	if err := WriteSVG(io.Discard, "", nil, 0); err != nil {
		t.Error(err)
	}
}

func (s *stand) has(call string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.calls, call)
}
