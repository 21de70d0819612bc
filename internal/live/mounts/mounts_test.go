package mounts

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	const info = `21 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw,errors=remount-ro
24 21 254:32 /a\134b /home\040dir ro - xfs /dev/disk\011x rw
25 21 0:40 / /bare rw - tmpfs none
short
 - 
26 21 7:0 / /end\04 rw - squashfs /dev/loop0 ro
`
	got := slices.Collect(Parse(info))
	want := []Mount{
		{Device: "254:1", Root: "/", Dir: "/", Type: "ext4", Source: "/dev/vda1", options: "rw,relatime", super: "rw,errors=remount-ro"},
		{Device: "254:32", Root: `/a\b`, Dir: "/home dir", Type: "xfs", Source: "/dev/disk\tx", options: "ro", super: "rw"},
		{Device: "0:40", Root: "/", Dir: "/bare", Type: "tmpfs", Source: "none", options: "rw"},
		{Device: "7:0", Root: "/", Dir: `/end\04`, Type: "squashfs", Source: "/dev/loop0", options: "rw", super: "ro"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if m := got[1]; !m.Has("ro") || m.Has("r") || !m.HasSuper("rw") {
		t.Errorf("options of %+v", m)
	}
	if !On("/proc") || On("/proc/self") {
		t.Error("/proc is not mounted here, or what is in it")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc", link); err != nil {
		t.Fatal(err)
	}
	if !On(link) {
		t.Error("a link to /proc leads to nothing that is mounted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("21 1 254:1 / /a\\040b rw shared:1 - ext4 /dev/vda1 rw\n")
	f.Fuzz(func(t *testing.T, info string) {
		for m := range Parse(info) {
			if m.Device == "" || m.Dir == "" || m.Type == "" {
				t.Errorf("%+v of %q", m, info)
			}
		}
	})
}
