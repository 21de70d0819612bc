package rootdisk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/lvmdisk"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
)

// tree makes a directory with the least that a system must have.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"usr/lib/systemd/systemd": "", "usr/sbin/e2fsck": "", "etc/fstab": "UUID=1 / ext4 defaults 0 1\nUUID=2 /srv ext4 defaults 0 2\nUUID=3 /opt ext4 nofail 0 2\n",
		"usr/lib/modules/6.1.0-9-amd64/modules.dep": "", "usr/lib/modules/6.1.0-10-amd64/modules.dep": "",
		"boot/vmlinuz-6.1.0-10-amd64": "kernel", "boot/initrd.img-6.1.0-10-amd64": "initrd",
	} {
		at := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// image makes a disk image of a tree, with or without a partition table before it.
func image(t *testing.T, tree string, parted bool) string {
	t.Helper()
	if os.Getuid() != 0 {
		tier.Lacks(t, "not root: an image is mounted")
	}
	path := filepath.Join(t.TempDir(), "root.img")
	first := 0
	table := make([]byte, 1<<20)
	if parted {
		first = 1 << 20
		entry := table[446:] // of a PC's table: type, first sector, sectors
		entry[4] = 0x83
		binary.LittleEndian.PutUint32(entry[8:], 2048)
		binary.LittleEndian.PutUint32(entry[12:], 64<<11)
		table[510], table[511] = 0x55, 0xaa
	}
	if err := errors.Join(os.WriteFile(path, table, 0o600), os.Truncate(path, int64(first)+64<<20)); err != nil {
		t.Fatal(err)
	}
	args := []string{"-q", "-F", "-t", "ext4", "-d", tree}
	if parted {
		args = append(args, "-E", "offset=1048576")
	}
	if out, err := exec.Command("mke2fs", append(args, path, "64M")...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	return path
}

// remade makes a disk image of a tree, with another kind of file system: a script has its device as $1, a directory to mount it
// on as $2, and the tree as $3.
func remade(t *testing.T, tree, script string) string {
	t.Helper()
	if os.Getuid() != 0 {
		tier.Lacks(t, "not root: an image is mounted")
	}
	path := filepath.Join(t.TempDir(), "root.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 320<<20)); err != nil {
		t.Fatal(err)
	}
	mounting(t, "set -e; "+script, path, t.TempDir(), tree)
	return path
}

// mounting runs a script where nobody else sees what it mounts.
func mounting(t *testing.T, script string, args ...string) string {
	t.Helper()
	out, err := exec.Command("unshare", append([]string{"-m", "sh", "-c", script, "sh"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// Scripts of remade.
const (
	makeXFS       = `mkfs.xfs -q $1; mount $1 $2; cp -a $3/. $2; umount $2`
	makeBtrfs     = `mkfs.btrfs -q $1; mount $1 $2; cp -a $3/. $2; umount $2`
	makeSubvolume = `sed -i "s, / ext4 defaults, / btrfs noatime\,subvol=@rootfs," $3/etc/fstab
		mkfs.btrfs -q $1; mount $1 $2; btrfs -q subvolume create $2/@rootfs; mkdir -p $2/plain/etc; touch $2/plain/etc/fstab
		cp -a $3/. $2/@rootfs; btrfs -q subvolume snapshot $2/@rootfs $2/older; umount $2`
	makeTwo = `mkfs.btrfs -q $1; mount $1 $2; btrfs -q subvolume create $2/one; cp -a $3/. $2/one
		btrfs -q subvolume snapshot $2/one $2/two; umount $2`
)

// files returns the files on an image, by path, as mount(8) shows them with these options.
func files(t *testing.T, path, options string) map[string]string {
	t.Helper()
	dir, at := t.TempDir(), t.TempDir()
	mounting(t, "set -e; mount -o ro,loop,$2 $1 $3; cp -a $3/. $4; umount $3", path, options, at, dir)
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(at string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(at)
		all[strings.TrimPrefix(at, dir+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPrepare(t *testing.T) {
	for name, tt := range map[string]struct {
		image   func() string
		options string // with which mount(8) shows the root file system
		boot    string // the parameters for that, after its UUID
	}{
		"bare":           {func() string { return image(t, tree(t), false) }, "", ""},
		"in a partition": {func() string { return image(t, tree(t), true) }, "offset=1048576", ""},
		"xfs":            {func() string { return remade(t, tree(t), makeXFS) }, "", ""},
		"btrfs":          {func() string { return remade(t, tree(t), makeBtrfs) }, "", ""},
		"btrfs, in a subvolume, and a snapshot of that": {func() string { return remade(t, tree(t), makeSubvolume) }, "subvol=@rootfs", " rootflags=subvol=@rootfs"},
	} {
		t.Run(name, func(t *testing.T) {
			path := tt.image()
			before := files(t, path, tt.options)
			older, err := os.ReadFile(path) // a copy, as of the pair's other side
			if err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(program, []byte("the agent"), 0o755); err != nil {
				t.Fatal(err)
			}
			d, err := Open(path, disk.Where{})
			if err != nil {
				t.Fatal(err)
			}
			var told []string
			tell := func(what string) { told = append(told, what) }
			c := Content{Program: program, Units: []string{"db.service"}, Mounts: []string{"/srv/"}}
			if err := d.Prepare(c, tell); err != nil {
				t.Fatal(err)
			}
			want := []string{
				"wrote /usr/libexec/understudy/understudy", "wrote /etc/systemd/system/understudy-agent.service", "wrote /etc/udev/rules.d/60-understudy.rules",
				"wrote /etc/systemd/network/00-understudy.network", "wrote /etc/systemd/system/db.service.d/understudy.conf",
				"set aside in /etc/fstab: UUID=2 /srv ext4 defaults 0 2",
			}
			if !slices.Equal(told, want) {
				t.Errorf("told %q", told)
			}
			told = nil
			if err := d.Prepare(c, tell); err != nil || told != nil {
				t.Errorf("again: %v, %q", err, told)
			}
			if p := d.Parameters(); p != "root=UUID="+d.UUID+tt.boot {
				t.Errorf("it is to boot with %q", p)
			}
			k, err := d.TakeKernel("", filepath.Join(t.TempDir(), "out"))
			if err != nil || k.Release != "6.1.0-10-amd64" {
				t.Fatalf("kernel %+v, %v", k, err)
			}
			for at, text := range map[string]string{k.Image: "kernel", k.Initramfs: "initrd"} {
				if b, err := os.ReadFile(at); err != nil || string(b) != text {
					t.Errorf("%s: %q, %v", at, b, err)
				}
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			now := files(t, path, tt.options)
			if now["usr/libexec/understudy/understudy"] != "the agent" || !strings.Contains(now["etc/fstab"], "\n#understudy: UUID=2 /srv") || len(now) != len(before)+5 {
				t.Errorf("the disk has %q", now)
			}
			if d, err = Open(path, disk.Where{}); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(d.Undo(tell), d.Close()); err != nil {
				t.Fatal(err)
			}
			now = files(t, path, tt.options)
			for name, text := range before {
				if now[name] != text {
					t.Errorf("%s is %q, and was %q", name, now[name], text)
				}
			}
			if len(now) != len(before) {
				t.Errorf("%d files, and there were %d", len(now), len(before))
			}
			copied := filepath.Join(t.TempDir(), "copy.img")
			if err := os.WriteFile(copied, older, 0o600); err != nil {
				t.Fatal(err)
			}
			if d, err = Open(copied, disk.Where{}); err != nil {
				t.Fatalf("the older copy: %v", err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if now, err := os.ReadFile(copied); err != nil || !bytes.Equal(now, older) {
				t.Errorf("looking at it changes it, or %v", err)
			}
		})
	}
}

// TestPrepareDirty: an XFS or btrfs that was not unmounted, with a log to be replayed, is left as it is.
func TestPrepareDirty(t *testing.T) {
	for kind, script := range map[string]string{"xfs": "mkfs.xfs -q $1", "btrfs": "mkfs.btrfs -q $1"} {
		t.Run(kind, func(t *testing.T) {
			path := remade(t, tree(t), script+`; mount $1 $2; cp -a $3/. $2; sync -f $2; touch $2/new; sync $2/new; cp $1 $1.dirty; umount $2`) + ".dirty"
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d, err := Open(path, disk.Where{}); !errors.Is(err, errUnclean) || !strings.Contains(err.Error(), kind+" in ") {
				t.Errorf("%v, %v", d, err)
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
				t.Errorf("it was changed, or %v", err)
			}
		})
	}
}

// TestPrepareRefuses: a disk that is in use, that was not unmounted, that has no systemd, or whose links
// lead out of it is left as it is.
func TestPrepareRefuses(t *testing.T) {
	open := func(path string) error {
		d, err := Open(path, disk.Where{})
		if err != nil {
			return err
		}
		err = d.Prepare(Content{Program: "/proc/self/exe"}, func(string) {})
		return errors.Join(err, d.Close())
	}
	refused := func(path, why string) {
		t.Helper()
		if err := open(path); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("want %q: %v", why, err)
		}
	}
	path := image(t, tree(t), false)
	hold, err := fence.Take(path)
	if err != nil {
		t.Fatal(err)
	}
	refused(path, "locked")
	hold.Close()
	if out, err := exec.Command("debugfs", "-w", "-R", "feature needs_recovery", path).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v: %s", err, out)
	}
	refused(path, "was not unmounted")
	bare := tree(t)
	if err := os.Remove(filepath.Join(bare, "usr/lib/systemd/systemd")); err != nil {
		t.Fatal(err)
	}
	refused(image(t, bare, false), "look for systemd")
	// A system whose /etc/systemd is a link to a directory of this machine.
	out, trap := t.TempDir(), tree(t)
	if err := os.Symlink(out, filepath.Join(trap, "etc/systemd")); err != nil {
		t.Fatal(err)
	}
	refused(image(t, trap, false), "escapes")
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("it wrote to this machine: %v, %v", left, err)
	}
	parted := tree(t)
	if err := os.WriteFile(filepath.Join(parted, "etc/fstab"), []byte("UUID=1 / ext4 defaults 0 1\nUUID=2 /usr ext4 defaults 0 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(image(t, parted, false), "over the agent's path: UUID=2 /usr")
	enforced := tree(t)
	config := filepath.Join(enforced, "etc/selinux/config")
	if err := errors.Join(os.Mkdir(filepath.Dir(config), 0o755), os.WriteFile(config, []byte("# SELINUX=disabled\nSELINUX=enforcing\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	refused(image(t, enforced, false), "has no file_contexts")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), os.Truncate(empty, 1<<20)); err != nil {
		t.Fatal(err)
	}
	refused(empty, "no root file system")
	refused(remade(t, tree(t), makeTwo), "a system in each of its subvolumes one, two")
}

// TestNoRoot: a file system that has only kernels is /boot, so the root is elsewhere: the error names what else is there.
func TestNoRoot(t *testing.T) {
	boot := t.TempDir()
	if err := os.WriteFile(filepath.Join(boot, "vmlinuz-6.1.0-10-amd64"), []byte("kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		at          int64 // in a second partition
		magic, want string
	}{
		"LVM":     {512, "LABELONE", "LVM"},
		"btrfs":   {65600, "_BHRfS_M", "btrfs"},
		"nothing": {0, "", "ext4 without a system"},
	} {
		t.Run(name, func(t *testing.T) {
			path := image(t, boot, true)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			entry := []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
			binary.LittleEndian.PutUint32(entry[8:], 65<<11)
			binary.LittleEndian.PutUint32(entry[12:], 8<<11)
			_, err = f.WriteAt(entry, 446+16)
			_, magic := f.WriteAt([]byte(tt.magic), 65<<20+tt.at)
			if err := errors.Join(err, magic, f.Truncate(73<<20), f.Close()); err != nil {
				t.Fatal(err)
			}
			d, err := Open(path, disk.Where{})
			if err == nil {
				d.Close()
			}
			if err == nil || !strings.Contains(err.Error(), "no root file system on it, but ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestSeveralRoots: of two systems on a disk none is taken by chance, and either can be selected by its number.
func TestSeveralRoots(t *testing.T) {
	path := image(t, tree(t), true)
	one, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	entry := one[446+16:]
	copy(entry, one[446:462])
	binary.LittleEndian.PutUint32(entry[8:], 65<<11)
	if err := os.WriteFile(path, append(one, one[1<<20:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(path, disk.Where{}); err == nil || !strings.Contains(err.Error(), "partition 1 and partition 2 have a root file system each") {
		t.Errorf("%v, %v", d, err)
	}
	d, err := Open(path, disk.Where{Part: 2})
	if err != nil {
		t.Fatal(err)
	}
	if d.root.Part != 2 || len(d.rest) != 1 || d.rest[0].Part != 1 {
		t.Errorf("root %+v, beside %+v", d.root, d.rest)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err := Open(path, disk.Where{Part: 3}); err == nil || !strings.Contains(err.Error(), "in partition 3, but one in partition 1, one in partition 2") {
		t.Errorf("%v, %v", d, err)
	}
}

// TestRootInVolume: a root file system in a linear logical volume is found and prepared, if the volume is in one piece. One in
// several pieces is not mounted, and is named.
func TestRootInVolume(t *testing.T) {
	root := lvmdisk.Linear(4, 64<<20/lvmdisk.Extent)
	end := 4 + root.Count
	for name, tt := range map[string]struct {
		volumes map[string][]lvmdisk.Segment // each gets the system
		err     string
	}{
		"one piece":      {map[string][]lvmdisk.Segment{"root": {root}, "home": {lvmdisk.Linear(end, root.Count), lvmdisk.Linear(0, 2)}}, ""},
		"several pieces": {map[string][]lvmdisk.Segment{"root": {root, lvmdisk.Linear(0, 2)}}, "ext4 in logical volume vg0/root, which is in 2 pieces"},
	} {
		t.Run(name, func(t *testing.T) {
			system, err := os.ReadFile(image(t, tree(t), false))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "volumes.img")
			var lines []string
			for name, segments := range tt.volumes {
				lines = append(lines, lvmdisk.Volume(name, lvmdisk.Visible, segments...))
			}
			if err := lvmdisk.Make(path, int64(end+root.Count), lines...); err != nil {
				t.Fatal(err)
			}
			on := func(volume string) (*os.File, device.Section) {
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				st, err := f.Stat()
				if err != nil {
					t.Fatal(err)
				}
				a, err := disk.At(f, st.Size(), disk.Where{Volume: "vg0/" + volume})
				if err != nil {
					t.Fatal(err)
				}
				return f, device.On(f, a)
			}
			for name := range tt.volumes {
				f, v := on(name)
				_, err := v.WriteAt(system, 0)
				if err = errors.Join(err, f.Close()); err != nil {
					t.Fatal(err)
				}
			}
			d, err := Open(path, disk.Where{})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, %v", d, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d.Parameters() != "root=/dev/mapper/vg0-root" {
				t.Errorf("it is to boot with %s", d.Parameters())
			}
			program := filepath.Join(t.TempDir(), "program")
			err = os.WriteFile(program, []byte("the agent"), 0o755)
			if err = errors.Join(err, d.Prepare(Content{Program: program}, func(string) {}), d.Close()); err != nil {
				t.Fatal(err)
			}
			for name, changed := range map[string]bool{"root": true, "home": false} {
				f, v := on(name)
				b := make([]byte, len(system))
				_, err := v.ReadAt(b, 0)
				if err = errors.Join(err, f.Close()); err != nil || bytes.Equal(b, system) == changed {
					t.Errorf("volume %s: %v; it was to change: %v", name, err, changed)
				}
			}
		})
	}
}

// TestInitramfsNames: an initramfs is found by the name that each distribution gives it, and the copy can be read only
// by those who could read the original.
func TestInitramfsNames(t *testing.T) {
	for _, name := range []string{"initramfs-6.1.0-10-amd64.img", "initrd-6.1.0-10-amd64"} {
		dir := tree(t)
		initrd := filepath.Join(dir, "boot", name)
		if err := errors.Join(os.Rename(filepath.Join(dir, "boot/initrd.img-6.1.0-10-amd64"), initrd), os.Chmod(initrd, 0o600)); err != nil {
			t.Fatal(err)
		}
		d, err := Open(image(t, dir, false), disk.Where{})
		if err != nil {
			t.Fatal(err)
		}
		k, err := d.TakeKernel("", filepath.Join(t.TempDir(), "out"))
		if b, _ := os.ReadFile(k.Initramfs); err != nil || string(b) != "initrd" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if st, err := os.Stat(k.Initramfs); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: others may read it: %v, %v", name, st, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHides(t *testing.T) {
	for line, hidden := range map[string]bool{
		"UUID=1 / ext4 defaults 0 1": false, "UUID=2 /usr ext4 defaults 0 2": true, "UUID=2 /usr/ ext4 defaults 0 2": true, "overlay /etc overlay defaults 0 0": true,
		"UUID=2 /usr/local ext4 defaults 0 2": false, "#UUID=2 /usr ext4 defaults 0 2": false, "UUID=3 none swap sw 0 0": false, "UUID=2 /usr/lib/und ext4": false,
	} {
		if got := hides("\n" + line + "\n"); (got == line) != hidden || got != "" != hidden {
			t.Errorf("%q: %q", line, got)
		}
	}
}

func TestFstab(t *testing.T) {
	const text = "# /srv\nUUID=1 / ext4 defaults 0 1\n\nUUID=2\t/srv\text4 defaults 0 2\nUUID=3 /srv/a ext4 noauto 0 0\nLABEL=x /b ext4 nofail 0 2\ntmpfs /tmp tmpfs defaults 0 0\n/dev/vdb /c ext4 defaults 0 0"
	after, aside, missing := setAside(text, []string{"/srv", "/none"})
	if !slices.Equal(aside, []string{"UUID=2\t/srv\text4 defaults 0 2"}) || !slices.Equal(missing, []string{"/none"}) {
		t.Errorf("set aside %q, missing %q", aside, missing)
	}
	if again, aside, missing := setAside(after, []string{"/srv"}); again != after || aside != nil || missing != nil {
		t.Errorf("again: %q, %q", aside, missing)
	}
	if back, lines := putBack(after); back != text || len(lines) != 1 {
		t.Errorf("put back %q of\n%s", lines, back)
	}
	if got := elsewhere(text, []string{"1"}); !slices.Equal(got, []string{"UUID=2\t/srv\text4 defaults 0 2", "/dev/vdb /c ext4 defaults 0 0"}) {
		t.Errorf("elsewhere: %q", got)
	}
	if got := elsewhere(after, []string{"1"}); len(got) != 1 {
		t.Errorf("elsewhere: %q", got)
	}
}

func never(device.Section) (bool, error) { return false, nil }

// TestUnclean: a file system is reported if it was not unmounted or is between two states; so is a disk without a
// known file system.
func TestUnclean(t *testing.T) {
	for name, tt := range map[string]struct {
		parted bool
		dirty  []disk.Where
		mount  string // what a mount does to the superblock, and what undoes it
		undo   string
	}{
		"bare":                 {false, []disk.Where{{}}, "feature needs_recovery", "feature ^needs_recovery"},
		"in a partition":       {true, []disk.Where{{Part: 1}}, "feature needs_recovery", "feature ^needs_recovery"},
		"without a journal":    {false, []disk.Where{{}}, "ssv state 0", "ssv state 1"},
		"partition without it": {true, []disk.Where{{Part: 1}}, "ssv state 0", "ssv state 1"},
	} {
		t.Run(name, func(t *testing.T) {
			path := image(t, tree(t), tt.parted)
			at := path
			if tt.parted {
				at += "?offset=1048576"
			}
			debugfs := func(command string) {
				t.Helper()
				if out, err := exec.Command("debugfs", "-w", "-R", command, at).CombinedOutput(); err != nil {
					t.Fatalf("debugfs: %v: %s", err, out)
				}
			}
			if strings.HasPrefix(tt.mount, "ssv") {
				debugfs("feature ^has_journal")
			}
			if got, err := Unclean(path, never); err != nil || got != nil {
				t.Errorf("unmounted: %v, %v", got, err)
			}
			debugfs(tt.mount)
			if got, err := Unclean(path, never); err != nil || !slices.Equal(got, tt.dirty) {
				t.Errorf("not unmounted: %v, %v", got, err)
			}
			always := func(s device.Section) (bool, error) { return s.Len() > 0, nil }
			debugfs(tt.undo)
			if got, err := Unclean(path, always); err != nil || !slices.Equal(got, tt.dirty) {
				t.Errorf("in between: %v, %v", got, err)
			}
			if hold, err := fence.Take(path); err != nil {
				t.Errorf("it holds the disk: %v", err)
			} else {
				hold.Close()
			}
		})
	}
	for kind, script := range map[string]string{"xfs": makeXFS, "btrfs": makeBtrfs} {
		if got, err := Unclean(remade(t, tree(t), script), never); err != nil || !slices.Equal(got, []disk.Where{{}}) {
			t.Errorf("%s, which may be unclean: %v, %v", kind, got, err)
		}
	}
	path := filepath.Join(t.TempDir(), "nothing.img")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Unclean(path, never); err != nil || !slices.Equal(got, []disk.Where{{}}) {
		t.Errorf("nothing that is known: %v, %v", got, err)
	}
}
