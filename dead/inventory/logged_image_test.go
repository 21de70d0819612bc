package inventory_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestLogged checks that content is listed that only the journal was to bring to the disk: of data=journal, of chattr +j, and
// of inline_data.
func TestLogged(t *testing.T) {
	tier.Guest(t)
	mkfs := []string{"mke2fs", "-qF", "-t", "ext4", "-I", "256"}
	from := t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "changed"), []byte("before\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// EXT4_EXTENTS_FL and EXT4_JOURNAL_DATA_FL
	flagged := `mke2fs -qF -t ext4 -d "$0" "$1" && debugfs -w -R "set_inode_field changed flags 0x84000" "$1"`
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		Disks: []scene.Disk{
			{Size: 64 << 20, Mkfs: mkfs},
			{Size: 64 << 20, Mkfs: []string{"sh", "-c", flagged, from}},
			{Size: 64 << 20, Mkfs: slices.Concat(mkfs, []string{"-O", "inline_data"})},
		},
		Script: `
mounts() {
	mount -t ext4 -o noinit_itable,commit=600,data=journal /dev/vda /mnt/a
	mount -t ext4 -o noinit_itable,commit=600,nodelalloc /dev/vdb /mnt/b
	mount -t ext4 -o noinit_itable,commit=600 /dev/vdc /mnt/c
}
mkdir /mnt/a /mnt/b /mnt/c
mounts
for d in a b c; do
	for f in changed saved dropped; do echo before >/mnt/$d/$f; done
	umount /mnt/$d
done
mounts
sleep 2 # the clock of ctime may lag by a second
echo after | dd of=/mnt/c/dropped conv=notrunc 2>/dev/null
echo 1 >/proc/sys/vm/drop_caches
for d in a b c; do
	cat /mnt/$d/saved
	echo after | dd of=/mnt/$d/changed conv=notrunc 2>/dev/null
	echo new >/mnt/$d/new
done
crash
`,
	})
	image, all := opened(t, s)
	for device, want := range map[string][]string{
		"vda": {`changed "after\n\n"`, `new "new\n"`},
		"vdb": {`changed "after\n\n"`, `new "new\n"`},
		"vdc": {`changed "after\n\n"`, `dropped refused`, `new "new\n"`},
	} {
		chosen, err := inventory.Choose(all, device)
		if err != nil {
			t.Fatal(err)
		}
		if got := contents(t, image, chosen[0]); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", device, got, want)
		}
	}
}

// opened opens the memory that a scene left.
func opened(t *testing.T, s *scene.Scene) (*inventory.Image, []*inventory.FileSystem) {
	t.Helper()
	image, err := inventory.Open(s.RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Close() })
	all, _, err := image.FileSystems()
	if err != nil {
		t.Fatal(err)
	}
	return image, all
}

// contents tells the files of which something is unsaved, and their content.
func contents(t *testing.T, image *inventory.Image, fs *inventory.FileSystem) (out []string) {
	found := fs.Find(inventory.Query{})
	for _, err := range found.Faults {
		t.Error(err)
	}
	for _, f := range found.Files {
		if len(f.Refused) > 0 {
			out = append(out, f.Path+" refused")
			continue
		}
		b := make([]byte, f.Size)
		_, err := image.ReadAt(b, 0, f.Size, f.Unsaved, func([]byte, int64) error { return inventory.ErrAbsent })
		if err != nil {
			t.Errorf("%s: %v", f.Path, err)
		}
		out = append(out, fmt.Sprintf("%s %q", f.Path, b))
	}
	return out
}
