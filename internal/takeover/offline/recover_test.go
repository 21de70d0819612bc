package offline

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// TestRecoverBlockDevice checks that a disk that is a block device, or whose file system is on one,
// is brought up to date without a directory being named.
func TestRecoverBlockDevice(t *testing.T) {
	t.Setenv("UNDERSTUDY_STATE", t.TempDir())
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		image, device, work, want string
	}{
		{image, "", "", ""},
		{os.DevNull, "", "", dirs.State("web")},
		{image, os.DevNull, "", dirs.State("web")},
		{os.DevNull, "", "/srv/room", "/srv/room"},
	} {
		r := &recovery{record: supervisor.Record{Pair: "web"}, options: RecoverOptions{Work: tt.work, Devices: map[string]string{"data": tt.device}}}
		o, err := r.on(&supervisor.RecordDisk{Name: "data", Image: tt.image}, Options{})
		if err != nil || o.Work != tt.want {
			t.Errorf("%+v: %q, %v", tt, o.Work, err)
		}
	}
}

// TestWorkOf checks that the work directory of an image is beside it, and that of a device in the
// pair's state directory.
func TestWorkOf(t *testing.T) {
	state := t.TempDir()
	t.Setenv("UNDERSTUDY_STATE", state)
	image := filepath.Join(t.TempDir(), "root.img")
	link := image + ".link"
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.DevNull, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{image: "", os.DevNull: dirs.State("web"), link: dirs.State("web")} {
		got, err := WorkOf("web", path)
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", path, got, err, want)
		}
	}
	if st, err := os.Stat(dirs.State("web")); err != nil || st.Mode().Perm()&0o007 != 0 {
		t.Errorf("its directory: %v, %v; want one that others cannot read", st, err)
	}
	if _, err := WorkOf("web", image+".gone"); err == nil {
		t.Error("a disk that is not there has a place")
	}
}

// TestRecoverRoots checks that the run directory stays at stake until each root disk has what only memory has
// of it, even if another one has it already, and that an interrupted run is completed by the next one.
func TestRecoverRoots(t *testing.T) {
	broken := errors.New("no room")
	for name, tc := range map[string]struct {
		left, right     error
		refused         bool // some of left's data is refused
		untouched       bool // left's last commit is refused
		ended           bool // interrupted during left's
		fails, unsaved  bool
		kept, stillLack int
	}{
		"both":                  {},
		"one fails":             {left: broken, fails: true, kept: 1, stillLack: 1},
		"both fail":             {left: broken, right: broken, fails: true, kept: 2, stillLack: 2},
		"something refused":     {refused: true, kept: 1},
		"left as it is":         {refused: true, untouched: true, kept: 1, stillLack: 1},
		"ended in the midst":    {ended: true, fails: true, unsaved: true, stillLack: 2},
		"the second in between": {right: takeover.ErrInBetween, fails: true, kept: 1, stillLack: 1},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		d := &supervisor.RunDir{Path: t.TempDir()}
		p := pair.Pair{Partitions: [2]pair.Partition{{Name: "left", Root: filepath.Join(d.Path, "left.img")}, {Name: "right", Root: filepath.Join(d.Path, "right.img")}}}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		for path, b := range map[string][]byte{"pair.json": b, "left.ram": nil, "right.ram": nil, "left.img": nil, "right.img": nil} {
			if err := os.WriteFile(filepath.Join(d.Path, path), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := &recovery{dir: d, record: supervisor.Record{Pair: "web"}}
		d.Record = &supervisor.Record{Pair: "web"}
		r.rescue = func(_ context.Context, o Options) ([]*Report, error) {
			if o.Disk != o.Image[:len(o.Image)-3]+"img" || o.GiveUp {
				t.Errorf("%s: %+v", name, o)
			}
			if o.Image == d.RAM("right") {
				return []*Report{{Complete: true}}, tc.right
			}
			if tc.ended {
				cancel()
			}
			return []*Report{{Complete: !tc.refused, Untouched: tc.untouched}}, tc.left
		}
		err = r.all(ctx)
		if (err != nil) != tc.fails || tc.left != nil && !errors.Is(err, tc.left) || tc.right != nil && !errors.Is(err, tc.right) {
			t.Errorf("%s: %v", name, err)
		}
		lacking, err := d.LackingRoots()
		if err != nil || len(lacking) != tc.stillLack || d.Record.Saved == tc.unsaved || len(d.Record.Kept) != tc.kept {
			t.Errorf("%s: %v, %d lack something still; %+v", name, err, len(lacking), d.Record)
		}
		cancel()
	}
}
