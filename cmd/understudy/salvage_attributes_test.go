package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/takeover/offline"
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

// An ACL in which user 1000 may do all, and the group nothing, as setxattr(2) takes it (include/uapi/linux/posix_acl_xattr.h).
const hexACL = "0x0200000001000700ffffffff02000700e803000004000000ffffffff10000700ffffffff20000000ffffffff"

// TestRemadeAttributes lets a kernel die with extended attributes, ACLs and device files that XFS or btrfs has in memory only, of
// files, directories and links that have to be made again, and of others. All of them are back, and nobody has more access
// than before.
func TestRemadeAttributes(t *testing.T) {
	together(t)
	at, err := exec.LookPath("setfattr")
	if err != nil {
		tier.Lacks(t, err.Error()+"; run scripts/setup.sh")
	}
	programs, err := initramfs.Programs("", at, strings.Replace(at, "setfattr", "getfattr", 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, kernel := range []string{fixture.Default, "6.12-cloud", "newest-cloud"} {
		for _, kind := range []string{"xfs", "btrfs"} {
			t.Run(kernel+" "+kind, func(t *testing.T) {
				if kernel != fixture.Default || kind != "xfs" {
					tier.Full(t, "attributes of "+kind+" on "+kernel)
				}
				remadeAttributes(t, kernel, kind, programs)
			})
		}
	}
}

// attributesOf prints what there is: type, permissions, owner, device, and extended attributes.
const attributesOf = `
cd /mnt
find . | sort | while read f; do stat -c '%A %u:%g %t,%T %n' $f; done
getfattr -R -P -h -d -m - -e hex . | sort
`

const attributesWork = `
mkdir /mnt/dir /mnt/shared
for f in old same gone less; do echo $f >/mnt/dir/$f; done
setfattr -n user.same -v 1 /mnt/dir/same
setfattr -n user.gone -v 1 /mnt/dir/gone
setfattr -n system.posix_acl_access -v $acl /mnt/dir/less
setfattr -n system.posix_acl_default -v $acl /mnt/shared
sync
echo more >>/mnt/dir/same
setfattr -n user.old -v "$(printf '%0150d' 7)" /mnt/dir/old
setfattr -n security.selinux -v label /mnt/dir/old
for n in $(seq 30); do setfattr -n user.many$n -v "$(printf '%0180d' $n)" /mnt/dir/same; done
setfattr -x user.gone /mnt/dir/gone
setfattr -x system.posix_acl_access /mnt/dir/less
chmod 600 /mnt/dir/less
echo long >/mnt/dir/long
setfattr -n security.NTACL -v "$(printf '%0400d' 7)" /mnt/dir/long
setfattr -n user.DOSATTRIB -v "$(printf '%0080d' 7)" /mnt/dir/long
for f in acl none; do echo $f >/mnt/dir/$f; chmod 770 /mnt/dir/$f; done
setfattr -n system.posix_acl_access -v $acl /mnt/dir/acl
mkdir /mnt/shared/made
umask 022
echo inherited >/mnt/shared/made/inherited
echo without >/mnt/shared/without
setfattr -x system.posix_acl_access /mnt/shared/without
chmod 604 /mnt/shared/without
setfattr -n trusted.overlay.opaque -v y /mnt/shared/made
mknod /mnt/dir/whiteout c 0 0
mknod /mnt/dir/null c 1 3
mknod /mnt/dir/disk b 259 70000
mknod /mnt/dir/fifo p
ln -s target /mnt/dir/link
setfattr -h -n trusted.link -v 1 /mnt/dir/link
chown 12:34 /mnt/dir/fifo
`

// remade lets a kernel die while XFS or btrfs has the work of a script in memory only, rescues the disk, and returns what a second
// script prints of /mnt before and after. The first may "sync" what is to be on the disk already.
func remade(t *testing.T, kernel, kind string, programs []initramfs.File, work, list string) (was, is string, r offline.Report) {
	out := scene.Disk{Size: 64 << 20, Mkfs: []string{"mkfs.ext4", "-qF"}}
	begin := "PATH=$PATH:/usr/bin:/usr/sbin\nmkdir /out\nmount -t ext4 /dev/vdb /out\n"
	list = "(" + list + ") >/out/list\numount /out\ncrash\n"
	s := scene.Play(t, scene.Spec{
		Kernel: kernel, Modules: []string{kind, "ext4"}, Files: programs,
		Disks: []scene.Disk{{Size: 512 << 20, Mkfs: []string{"mkfs." + kind, "-q"}}, out},
		Script: begin + fmt.Sprintf(`
for s in /proc/sys/fs/xfs/xfssyncd_centisecs /proc/sys/vm/dirty_writeback_centisecs; do [ ! -e $s ] || echo 720000 >$s; done
mount -t %[1]s -o $([ %[1]s = xfs ] && echo noatime || echo commit=600) /dev/vda /mnt
`, kind) + work + list,
	})
	b := &bench{t: t, image: &fixture.Image{RAM: s.RAM}}
	b.disk.Image = s.Disks[0]
	if r = b.apply(); !r.Complete {
		t.Errorf("%+v", r)
	}
	after := scene.Play(t, scene.Spec{
		Kernel: kernel, Modules: []string{kind, "ext4"}, Files: programs,
		Disks:  []scene.Disk{{Copy: b.disk.Image}, out},
		Script: begin + "mount -t " + kind + " -o ro /dev/vda /mnt\n" + list,
	})
	return debugfs(t, s.Disks[1], "cat list"), debugfs(t, after.Disks[1], "cat list"), r
}

func remadeAttributes(t *testing.T, kernel, kind string, programs []initramfs.File) {
	was, is, _ := remade(t, kernel, kind, programs, "acl="+hexACL+attributesWork, attributesOf)
	if was != is || strings.Count(was, "system.posix_acl_access") != 3 {
		t.Errorf("there was\n%s\nand there is\n%s", was, is)
	}
}
