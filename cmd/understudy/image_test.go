package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/dirs"
)

// TestKernelPrefix: a kernel is not left in /dev, which is made anew at each boot.
func TestKernelPrefix(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ image, out, want string }{
		{"/srv/vm.img", "", "/srv/vm.img"},
		{"/srv/vm.img", "web", filepath.Join(here, "web")},
		{"/dev/vg0/web", "/srv/web", "/srv/web"},
		{"/dev/vg0/web", "", ""},
		{"/dev/vg0/web", "/srv/../dev/web", ""},
	} {
		p := preparation{out: tt.out}
		got, err := p.prefix(tt.image)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%s, --out %q: got %q, %v; want %q", tt.image, tt.out, got, err, tt.want)
		}
		if err != nil && (!strings.Contains(err.Error(), "copy the kernel of "+tt.image) || !strings.Contains(err.Error(), "--out PREFIX")) {
			t.Errorf("%s: it says %v", tt.image, err)
		}
	}
}

// TestRootWork: what a root disk is to get lies beside an image; there is no beside of a device.
func TestRootWork(t *testing.T) {
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
		got, err := rootWork("web", path)
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", path, got, err, want)
		}
	}
	if st, err := os.Stat(dirs.State("web")); err != nil || st.Mode().Perm()&0o007 != 0 {
		t.Errorf("its directory: %v, %v; want one that others cannot read", st, err)
	}
	if _, err := rootWork("web", image+".gone"); err == nil {
		t.Error("a disk that is not there has a place")
	}
}
