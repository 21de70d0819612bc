package main

import (
	"encoding/json"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestKinds tests a crash with other kinds of file systems: one with quotas, whose format
// the kernel requests by name when it is mounted, and which is also mounted in other
// namespaces; and one that is not understood.
func TestKinds(t *testing.T) {
	vm(t)
	tier.Full(t, "quotas, other namespaces, and a file system that is not understood")
	b := sceneBench(t, scene.Spec{
		Kernel:  "6.1-generic",
		Modules: []string{"ext4", "quota_v2", "minix"},
		Disks: []scene.Disk{
			{Size: 256 << 20, Mkfs: []string{"mkfs.ext4", "-qF", "-O", "quota,project"}},
			{Size: 32 << 20, Mkfs: []string{"mkfs.minix", "-3"}},
		},
		Script: `
echo 1000000 >/proc/sys/vm/dirty_writeback_centisecs
mount -t ext4 -o commit=1000 /dev/vda /mnt
mkdir /other
mount -t minix /dev/vdb /other
echo one >/mnt/one
sync
unshare -m sleep 1000 &
unshare -m sleep 1000 &
sleep 2
echo two >>/mnt/one
mkdir /mnt/dir
echo three >/mnt/dir/three
chown 1000:1000 /mnt/dir/three
head -c 9000 /dev/zero >/other/four
crash
`,
	})
	t.Run("inspect", b.inspectKinds)
	t.Run("list", func(t *testing.T) {
		got := command(t, "salvage", "list", b.image.RAM)
		if exitCode(got.err) != exitRefused || !strings.Contains(text(got.err), "minix") || !strings.Contains(got.out, "dir/three") || strings.Contains(got.out, "four") {
			t.Errorf("%v: %s", got.err, got.out)
		}
	})
	t.Run("apply", func(t *testing.T) {
		r := b.apply()
		if !r.Complete {
			t.Errorf("%+v", r)
		}
		b.tidy()
		// e2fsck also compares the quotas.
		b.has(map[string]string{"/one": "one\ntwo\n", "/dir/three": "three\n"})
	})
}

// inspectKinds checks that mounts in other namespaces are counted, and that a file system
// that is not understood does not count as empty.
func (b *bench) inspectKinds(t *testing.T) {
	got := command(t, "inspect", "--json", b.image.RAM)
	var in inspection
	if err := json.Unmarshal([]byte(got.out), &in); err != nil {
		t.Fatalf("%v: %v: %s", err, got.err, got.out)
	}
	seen := 0
	for _, f := range in.FileSystems {
		switch f.Type {
		case "ext4":
			seen++
			if len(f.MountedOn) != 1 || f.MountedOn[0] != "/mnt" || f.Elsewhere != 2 || f.Files != 2 {
				t.Errorf("%+v", f)
			}
		case "minix":
			seen++
			if !f.NotRead || f.Files < 1 || f.Files > 2 || f.Bytes < 9000 || f.Bytes > 4*4096 { // its directory may be one of the files
				t.Errorf("%+v", f)
			}
		}
	}
	if seen != 2 || exitCode(got.err) != exitRefused {
		t.Errorf("%v: %s", got.err, got.out)
	}
}
