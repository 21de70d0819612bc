package offline

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/foreign"
)

// TestPlace checks that the memory is kept beside a file that has a file system, not beside
// anything else that QEMU writes to.
func TestPlace(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		tier.Lacks(t, err)
	}
	dir := t.TempDir()
	disk := func(name string, size int64, fs bool) foreign.Disk {
		d := foreign.Disk{Path: filepath.Join(dir, name), Format: "raw"}
		if err := os.MkdirAll(filepath.Dir(d.Path), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if !fs {
			return d
		}
		if out, err := exec.Command("mke2fs", "-q", d.Path).CombinedOutput(); err != nil {
			t.Fatalf("mke2fs: %v: %s", err, out)
		}
		return d
	}
	tpm, log := disk("nvram/tpm", 64<<10, false), disk("log/serial", 64<<20, false)
	small, large := disk("a/small.img", 1<<20, true), disk("b/large.img", 2<<20, true)
	device := foreign.Disk{Path: "/dev/null", Format: "raw"}
	for name, c := range map[string]struct {
		disks      []foreign.Disk
		work, room string
		want       string // empty if it is refused
	}{
		"not the first":       {[]foreign.Disk{tpm, log, small}, "", "/room", filepath.Join(dir, "a")},
		"the largest":         {[]foreign.Disk{tpm, small, large, log}, "", "", filepath.Join(dir, "b")},
		"none is known":       {[]foreign.Disk{tpm, log}, "", "", filepath.Join(dir, "log")},
		"named":               {[]foreign.Disk{small}, "/work", "/room", "/work"},
		"devices":             {[]foreign.Disk{device}, "", "/room", "/room"},
		"devices, and tpm":    {[]foreign.Disk{device, tpm}, "", "/room", filepath.Join(dir, "nvram")},
		"devices and no room": {[]foreign.Disk{device}, "", "", ""},
	} {
		a := Adoption{Options: Options{Work: c.work}, Room: c.room}
		err := a.place(&custody{PID: 7}, c.disks)
		if c.want == "" {
			if err == nil {
				t.Errorf("%s: %s", name, a.Memory)
			}
			continue
		}
		if err != nil || a.Memory != filepath.Join(c.want, "qemu-7.memory") {
			t.Errorf("%s: %s, %v; want it in %s", name, a.Memory, err, c.want)
		}
	}
}

// TestBootable checks that nothing is begun without a kernel for the guest that XFS and btrfs,
// and ext4 with --guest, are written to in.
func TestBootable(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, c := range []struct {
		guest string
		types []string
		fails bool
	}{
		{"/nowhere", []string{"xfs"}, true},
		{"/nowhere", []string{"btrfs"}, true},
		{"/nowhere", []string{"ext4"}, true},
		{"", []string{"ext4", "ext3", "ext2"}, false},
		{"", nil, false},
	} {
		a := Adoption{Options: Options{Guest: c.guest}}
		err := a.bootable(t.Context(), c.types)
		if (err != nil) != c.fails || c.fails && !strings.Contains(err.Error(), c.types[0]) {
			t.Errorf("%q with a kernel in %q: %v", c.types, c.guest, err)
		}
	}
}
