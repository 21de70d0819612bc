package offline

import (
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// TestRecoverBlockDevice: a disk that is a block device, or whose file system is on one, is brought
// up to date without being told where.
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

// TestWorkOf: what a disk is to get lies beside an image; there is no beside of a device.
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
