package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKernelPrefix checks that a kernel is not left in /dev, which is made anew at each boot.
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
