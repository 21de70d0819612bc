package supervisor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/wire"
)

// TestFits: what a takeover could not bring over is refused by name, from the disk itself.
func TestFits(t *testing.T) {
	tests := []struct {
		name, command string
		kind          pair.FSType
		want          string // empty: it fits
	}{
		{"ext4", "mkfs.ext4 -q -F", pair.Ext4, ""},
		{"ext3", "mkfs.ext3 -q -F", pair.Ext3, ""},
		{"ext3 by ext4", "mkfs.ext3 -q -F", pair.Ext4, ""},
		{"quota", "mkfs.ext4 -q -F -O quota,project", pair.Ext4, ""},
		{"ext4 by ext3", "mkfs.ext4 -q -F", pair.Ext3, "say type: ext4"},
		{"mmp", "mkfs.ext4 -q -F -O mmp", pair.Ext4, "tune2fs -O ^mmp"},
		{"an external journal", "mke2fs -q -F -O journal_dev", pair.Ext4, "journal_dev"},
		{"xfs", "mkfs.xfs -q -f", pair.Ext4, "has XFS"},
		{"btrfs", "mkfs.btrfs -q -f", pair.Ext4, "has btrfs"},
		{"gpt", "magic", pair.Ext4, "a partition table"},
		{"mbr", "magic", pair.Ext4, "a partition table"},
		{"luks", "magic", pair.Ext4, "LUKS"},
		{"lvm", "magic", pair.Ext4, "LVM"},
		{"nothing", "true", pair.Ext4, "mkfs.ext4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.img")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, 512<<20); err != nil {
				t.Fatal(err)
			}
			if tt.command == "magic" {
				writeMagic(t, path, tt.name)
				tt.command = "true"
			}
			words := append(strings.Fields(tt.command), path)
			cmd := exec.Command(words[0], words[1:]...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Skipf("%s: %v: %s", tt.command, err, out)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			err = fits(pair.Disk{Name: "data", Image: path, Type: tt.kind}, f)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// writeMagic has a disk begin as things do that Debian's own programs make: sfdisk(8),
// cryptsetup(8), pvcreate(8).
func writeMagic(t *testing.T, path, name string) {
	t.Helper()
	m := map[string]struct {
		at   int64
		text string
	}{"gpt": {512, "EFI PART"}, "mbr": {510, "\x55\xaa"}, "luks": {0, "LUKS\xba\xbe"}, "lvm": {512, "LABELONE"}}[name]
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(m.text), m.at); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// TestAble: a guest that could not check its disk after a crash is refused before.
func TestAble(t *testing.T) {
	for _, tt := range []struct {
		kind    string
		checker bool
		fails   bool
	}{{"ext4", true, false}, {"ext4", false, true}, {"ext3", false, true}, {"xfs", false, false}} {
		err := able(wire.Greeting{Checker: tt.checker}, wire.Config{Disks: []wire.Disk{{Name: "data", Type: tt.kind}}})
		if (err != nil) != tt.fails || tt.fails && !strings.Contains(err.Error(), "understudy initramfs") {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
