package offline

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/morgue"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// made makes an image with a file system, and opens it.
func made(t *testing.T, size int64, mkfs ...string) *os.File {
	t.Helper()
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		tier.Lacks(t, err)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], path)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestFingerprint checks that a disk is recognized until its superblock, or the log of XFS, is written.
func TestFingerprint(t *testing.T) {
	for name, tc := range map[string]struct {
		size      int64
		mkfs      []string
		at, other int64 // bytes that count, and that do not
	}{
		"ext4":  {4 << 20, []string{"mke2fs", "-qF", "-t", "ext4"}, 1024 + 0x30, 3 << 20},
		"btrfs": {128 << 20, []string{"mkfs.btrfs", "-qf"}, 64<<10 + 72, 100 << 20},
		"xfs":   {512 << 20, []string{"mkfs.xfs", "-qf"}, 0, 500 << 20},
	} {
		f := made(t, tc.size, tc.mkfs...)
		if name == "xfs" {
			on, err := salvage.Identify(f)
			if err != nil || on.Log.Len() < 1<<20 || on.Log.End > tc.size {
				t.Fatalf("the log is %+v, %v", on, err)
			}
			log := on.Log
			head := make([]byte, 4)
			if _, err := f.ReadAt(head, log.Off); err != nil || binary.BigEndian.Uint32(head) != 0xfeedbabe { // XLOG_HEADER_MAGIC_NUM
				t.Fatalf("the log begins with %x, %v", head, err)
			}
			tc.at = log.End - 1
		}
		before, err := fingerprint(f)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		on, err := salvage.Identify(f)
		if err != nil {
			t.Fatal(err)
		}
		flip(t, f.Name(), tc.other)
		h := handOver{super: before}
		if err := h.check(f, on); err != nil {
			t.Errorf("%s: as it was: %v", name, err)
		}
		flip(t, f.Name(), tc.at)
		if err := h.check(f, on); !errors.Is(err, salvage.ErrDiskChanged) {
			t.Errorf("%s: written to: %v", name, err)
		}
		if err := (&handOver{}).check(f, on); !errors.Is(err, salvage.ErrDiskChanged) {
			t.Errorf("%s: nothing is known: %v", name, err)
		}
	}
}

// TestHandedBeforeMount checks that a disk which the understudy had not mounted counts as used by others if its
// superblock was written after the understudy had died, or if nothing but a mount writes to it.
func TestHandedBeforeMount(t *testing.T) {
	f := made(t, 4<<20, "mke2fs", "-qF", "-t", "ext4")
	died := time.Unix(1_900_000_000, 0)
	for name, tc := range map[string]struct {
		family         string
		mount, written time.Time
		changed        bool
	}{
		"before":            {"ext", died.Add(-time.Hour), died.Add(-time.Second), false},
		"about then":        {"ext", died.Add(-time.Hour), died.Add(2 * time.Second), false},
		"mounted later":     {"ext", died.Add(time.Minute), died, true},
		"written later":     {"ext", died, died.Add(time.Minute), true},
		"of another family": {"xfs", died, died, true},
	} {
		var b [8]byte
		binary.LittleEndian.PutUint32(b[:], uint32(tc.mount.Unix()))
		binary.LittleEndian.PutUint32(b[4:], uint32(tc.written.Unix()))
		if _, err := f.WriteAt(b[:], superAt+0x2c); err != nil {
			t.Fatal(err)
		}
		h := handOver{died: died}
		if err := h.check(f, &salvage.OnDisk{Family: tc.family}); errors.Is(err, salvage.ErrDiskChanged) != tc.changed || !tc.changed && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRecoverHandedOver checks on what conditions the dead side's memory is brought to a disk that the understudy had.
func TestRecoverHandedOver(t *testing.T) {
	died := time.Unix(1_900_000_000, 0)
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		progress takeover.Progress
		super    string // recorded
		heir     error
		active   error     // unless it was handed over
		want     *handOver // of the last run
		fails    bool
	}{
		"both":                       {progress: takeover.HandedOver, want: &handOver{super: "print"}},
		"the second step again":      {progress: heirSaved, super: "earlier", want: &handOver{super: "earlier"}},
		"of an older program":        {progress: heirSaved, want: &handOver{}},
		"not mounted":                {progress: takeover.HandedOver, heir: &notMounted{died: died}},
		"not mounted, and checked":   {progress: takeover.HandedOver, heir: &notMounted{died: died}, active: salvage.ErrDiskChanged, want: &handOver{died: died}},
		"not mounted, without clock": {progress: takeover.HandedOver, heir: &notMounted{}, active: salvage.ErrDiskChanged, fails: true},
	} {
		r := recovery{dir: &supervisor.RunDir{Path: t.TempDir()}}
		r.record = supervisor.Record{Pair: "p", Active: "left", Heir: "right", Disks: []supervisor.RecordDisk{{Name: "data", Image: image, Progress: tc.progress, Super: tc.super}}}
		var last *handOver
		r.run = func(_ context.Context, o Options) (*Report, error) {
			last = o.handedOver
			report := &Report{Complete: true}
			switch {
			case filepath.Base(o.Image) == "right.ram":
				if o.print {
					report.print = "print"
				}
				return report, tc.heir
			case o.handedOver == nil:
				return report, tc.active
			}
			return report, nil
		}
		d := &r.record.Disks[0]
		if err := r.disk(t.Context(), d); errors.Is(err, salvage.ErrDiskChanged) != tc.fails || !tc.fails && (err != nil || d.Progress != saved) {
			t.Errorf("%s: %v, %s", name, err, d.Progress)
		}
		if (last == nil) != (tc.want == nil) || last != nil && *last != *tc.want {
			t.Errorf("%s: %+v, want %+v", name, last, tc.want)
		}
	}
}

// TestRecoverNotMounted checks when the pair counts as having lost nothing of a disk that no kernel of it had mounted.
func TestRecoverNotMounted(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, id := &application{Options: Options{Disk: image}}, addr.UUID{1}
	for name, tc := range map[string]struct {
		recorded string
		none     error
		fails    bool
	}{
		"the disk, unmounted":   {"u", &notMounted{uuid: "u"}, false},
		"the disk, not clean":   {"u", &notMounted{uuid: "u", unclean: errors.New("no")}, true},
		"another disk":          {"u", &notMounted{uuid: "v"}, true},
		"of an older program":   {"", &notMounted{uuid: "u"}, true},
		"of a commit":           {"u", inBetween{&notMounted{}}, true},
		"of an unclear memory":  {id.String(), a.noneOf(nil, id, errors.New("walk superblocks")), true},
		"of a memory, as found": {"", a.noneOf(nil, id, nil), true},
	} {
		for _, progress := range []takeover.Progress{"", takeover.Fenced, takeover.HandedOver, takeover.Given} {
			r := recovery{dir: &supervisor.RunDir{Path: t.TempDir()}, run: func(context.Context, Options) (*Report, error) { return nil, tc.none }}
			r.record = supervisor.Record{Pair: "p", Active: "left", Heir: "right", Disks: []supervisor.RecordDisk{{Name: "data", Image: image, UUID: tc.recorded, Progress: progress, Refused: new(false)}}}
			err := r.all(t.Context())
			if (err != nil) != tc.fails || r.record.Saved == tc.fails {
				t.Errorf("%s, %q: %v, saved: %v", name, progress, err, r.record.Saved)
			}
		}
	}
	if errors.Is(a.noneOf(nil, id, errors.New("walk superblocks")), ErrNotMounted) {
		t.Error("what could not be read counts as not mounted")
	}
}

// TestCleanDisk checks which disks say that they were unmounted.
func TestCleanDisk(t *testing.T) {
	f := made(t, 4<<20, "mke2fs", "-qF", "-t", "ext4")
	on := &salvage.OnDisk{Family: "ext"}
	if err := morgue.Clean(on, f); err != nil {
		t.Errorf("a new one: %v", err)
	}
	if _, err := f.WriteAt([]byte{0, 0}, superAt+0x3a); err != nil { // s_state
		t.Fatal(err)
	}
	if err := morgue.Clean(on, f); err == nil {
		t.Error("one that is not clean")
	}
	if err := morgue.Clean(&salvage.OnDisk{Family: "xfs"}, f); err != nil {
		t.Errorf("one that does not say: %v", err)
	}
}
