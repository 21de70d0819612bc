package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
)

// TestLongAttributes lets a kernel die with values of extended attributes that are in inodes of their own: one
// that is saved, one that replaced a saved one, one that is shared with a new file, and one that was removed.
// These inodes are not files, and the last commit brings them.
func TestLongAttributes(t *testing.T) {
	together(t)
	tier.Full(t, "values of attributes in inodes of their own")
	at, err := exec.LookPath("setfattr")
	if err != nil {
		tier.Lacks(t, err.Error()+"; run scripts/setup.sh")
	}
	program, err := initramfs.Program(at)
	if err != nil {
		t.Fatal(err)
	}
	b := sceneBench(t, scene.Spec{
		Modules: []string{"ext4"},
		Files:   program,
		Disks:   []scene.Disk{{Size: 128 << 20, Mkfs: []string{"mkfs.ext4", "-qF", "-b", "4096", "-O", "ea_inode"}}},
		Script: `
echo 1000000 >/proc/sys/vm/dirty_writeback_centisecs
mount -t ext4 -o commit=1000 /dev/vda /mnt
value() { head -c 9000 /dev/zero | tr '\0' $1; }
echo one >/mnt/one
echo two >/mnt/two
` + at + ` -n user.kept -v "$(value k)" /mnt/one
` + at + ` -n user.replaced -v "$(value o)" /mnt/one
` + at + ` -n user.removed -v "$(value r)" /mnt/two
sync
` + at + ` -n user.replaced -v "$(value n)" /mnt/one
` + at + ` -x user.removed /mnt/two
mkdir /mnt/dir
echo three >/mnt/dir/three
` + at + ` -n user.shared -v "$(value k)" /mnt/dir/three
` + at + ` -n user.own -v "$(value t)" /mnt/dir/three
echo more >>/mnt/one
crash
`,
	})
	t.Run("list", func(t *testing.T) {
		for args, want := range map[string][]string{"": {"dir/three", "one"}, "--all": {"dir/three", "one", "two"}} {
			got := command(t, slices.DeleteFunc([]string{"salvage", "list", b.image.RAM, "--json", args}, func(s string) bool { return s == "" })...)
			var paths []string
			for _, f := range report(t, got.out).FileSystems[0].Files {
				paths = append(paths, f.Path)
			}
			if got.err != nil || !slices.Equal(paths, want) {
				t.Errorf("%s: %v: %q, want %q", args, got.err, paths, want)
			}
		}
	})
	t.Run("apply", func(t *testing.T) {
		if r := b.apply(); !r.Complete || r.Commit == nil {
			t.Errorf("%+v", r)
		}
		b.tidy()
		b.has(map[string]string{"/one": "one\nmore\n", "/two": "two\n", "/dir/three": "three\n"})
		value := func(letter string) string { return strings.Repeat(letter, 9000) }
		for file, attributes := range map[string]map[string]string{
			"/one":       {"user.kept": value("k"), "user.replaced": value("n")},
			"/two":       {},
			"/dir/three": {"user.shared": value("k"), "user.own": value("t")},
		} {
			for name, want := range attributes {
				// -V prints the value alone.
				if got := strings.TrimSuffix(debugfs(t, b.disk.Image, "ea_get -V "+file+" "+name), "\n"); got != want {
					t.Errorf("%s of %s has %d bytes, %.20q", name, file, len(got), got)
				}
			}
			if got := strings.Count(debugfs(t, b.disk.Image, "ea_list "+file), "user."); got != len(attributes) {
				t.Errorf("%s has %d attributes, want %d", file, got, len(attributes))
			}
		}
	})
}
