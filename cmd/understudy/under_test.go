package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// settings makes a side keep in memory everything that is written.
func (s *standing) settings(side string, more map[string]string) {
	s.t.Helper()
	var line strings.Builder
	for _, all := range []map[string]string{hold.Dirty, more} {
		for name, value := range all {
			fmt.Fprintf(&line, "echo %s > /proc/sys/%s; ", value, name)
		}
	}
	s.shell(side, line.String()+"true")
}

// saved is a script that creates files in a directory that is a mount, and work one that leaves
// all kinds of things unsaved there. A sync syncs all file systems.
const saved = `set -e; cd %[1]s; grep -q " %[1]s " /proc/mounts
mkdir -p old/sub; seq 1 5000 > old/a; seq 1 3000 > old/b; seq 1 100 > old/sub/c; ln old/b old/hard; seq 5 9000 > old/d; sync
`

const work = `set -e; cd %[1]s
seq 1 40000 > new; mkdir -p d1/d2; for i in $(seq 1 30); do seq $i 2000 > d1/d2/f$i; done
seq 1 700 >> old/a; dd if=new of=old/d bs=4096 seek=1 count=1 conv=notrunc 2>/dev/null; mv old/sub/c old/sub/renamed
ln -s ../new d1/link; ln new d1/hard; dd if=new of=sparse bs=4096 seek=200 count=3 2>/dev/null; : > empty
chmod 640 new; chown 1000:100 d1/d2/f1; chmod 4711 d1/d2/f2; mv d1/d2/f3 d1/renamed; touch -d '2020-02-02 02:02:02' old/b
`

// listing prints the content of a directory and everything below: names, types,
// permissions, owners, links, times of files, and their data.
const listing = `(cd %s && find . -xdev ! -type d ! -name mark | sort | xargs stat -c '%%N %%F %%a %%u:%%g %%h %%s %%Y' && find . -xdev -type d | sort | xargs stat -c '%%n %%F %%a %%u:%%g' && find . -xdev -type f ! -name mark | sort | xargs sha256sum)`

// did makes a side run the script work, or another one, in a directory.
func (s *standing) did(side, dir, script string) {
	s.t.Helper()
	line := strings.ReplaceAll(strings.TrimSpace(fmt.Sprintf(script, dir)), "\n", "; ")
	if out := s.says(side, "sh -c '"+strings.ReplaceAll(line, "'", `'\''`)+"' && echo worked"); out != "worked" {
		s.t.Fatalf("the work in %s said %s", dir, out)
	}
}

// list returns the listing of a directory.
func (s *standing) list(side, dir string) string {
	s.t.Helper()
	out := s.says(side, fmt.Sprintf(listing, dir))
	if !strings.Contains(out, "empty") {
		s.t.Fatalf("the listing of %s: %s", dir, out)
	}
	return out
}

// tookOver crashes the active side, and checks that the takeover brought everything over.
func (s *standing) tookOver() status {
	s.t.Helper()
	if _, err := understudy(s.t, "crash"); err != nil {
		s.t.Fatal(err)
	}
	var st status
	await(s.t, "takeover", programLimit, func() bool {
		st = s.status()
		return st.Takeovers >= 1 && st.State != "taking over" || st.State == "failed"
	})
	if st.Active != "right" || st.Takeover == nil || len(st.Takeover.Refused) > 0 {
		s.t.Fatalf("status after the takeover: %+v, last takeover: %+v", st, st.Takeover)
	}
	return st
}

// discards makes the active side discard the blocks of a file, and checks that the image releases them.
func (s *standing) discards(dir, mount string) {
	s.t.Helper()
	const size = 24 << 20
	blocks := func() (n int64) {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "data.img"), &st); err != nil {
			s.t.Fatal(err)
		}
		return st.Blocks * 512
	}
	before := blocks()
	s.shell("left", fmt.Sprintf("dd if=/dev/urandom of=%s/large bs=1M count=%d; sync", mount, size>>20))
	if full := blocks(); full < before+size*3/4 {
		s.t.Errorf("the image has %d bytes, and had %d before %d were written and synced", full, before, size)
	}
	s.shell("left", fmt.Sprintf("rm %s/large", mount))
	await(s.t, fmt.Sprintf("discard of %d bytes by an image that had %d before they were written", size, before), programLimit, func() bool {
		s.shell("left", fmt.Sprintf("sync; fstrim %s", mount)) // XFS frees what an inode had some time after the inode's end
		return blocks() <= before+size/4
	})
}

// under is a kind of file system, or of layers under one.
type under struct {
	name    string
	whole   bool   // discards do not reach the image: LUKS passes none on unless it is told to
	full    string // why only make test-full tests it; empty if make test does, too
	make    func(t *testing.T, dir, key string)
	guest   []string // further arguments for the guest's image
	disks   string   // in place of the disks of pairFile, in pair.yaml
	dirs    []string // mounts, the outermost first
	hold    map[string]string
	before  string // a shell script before the work
	without string // a part of work that is left out
	check   func(t *testing.T, dir string)
}

const plainDisk = "  - {name: data, image: data.img, mount: /srv}\n"

var unders = []under{
	{
		name: "nested", guest: []string{"--fs", "xfs"}, hold: hold.XFS,
		disks: "  - {name: data, image: data.img, partition: 2, mount: /srv}\n  - {name: inner, image: inner.img, type: xfs, mount: /srv/data}\n  - {name: deep, image: deep.img, type: ext3, mount: /srv/data/deep}\n",
		make: func(t *testing.T, dir, _ string) {
			dividedDisk(t, filepath.Join(dir, "data.img"), "label: gpt\nstart=2048, size=4096\nstart=8192, size=262144\n", 4<<20, 128<<20, "mkfs.ext4", "-qF", "-E", notLazy)
			mkfsOn(t, filepath.Join(dir, "inner.img"), 320<<20, "mkfs.xfs", "-qf")
			mkfsOn(t, filepath.Join(dir, "deep.img"), 64<<20, "mkfs.ext3", "-qF")
		},
		dirs: []string{"/srv", "/srv/data", "/srv/data/deep"},
		check: func(t *testing.T, dir string) {
			checked(t, "/sbin/sfdisk", "--verify", "-q", filepath.Join(dir, "data.img"))
			checked(t, "e2fsck", "-fn", taken(t, filepath.Join(dir, "data.img"), 4<<20, 128<<20))
			checked(t, "xfs_repair", "-n", "-f", filepath.Join(dir, "inner.img"))
			checked(t, "e2fsck", "-fn", filepath.Join(dir, "deep.img"))
		},
	},
	{
		name: "kinds", full: "quotas, features of files, protection from other machines, and what is done at an error",
		guest: []string{"--add", "/usr/bin/chattr"},
		disks: "  - {name: data, image: data.img, mount: /srv}\n  - {name: inner, image: inner.img, mount: /srv/data}\n  - {name: deep, image: deep.img, mount: /srv/data/deep}\n",
		make: func(t *testing.T, dir, _ string) {
			mkfsOn(t, filepath.Join(dir, "data.img"), 128<<20, "mkfs.ext4", "-qF", "-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota,"+notLazy, "-e", "remount-ro")
			mkfsOn(t, filepath.Join(dir, "inner.img"), 64<<20, "mkfs.ext4", "-qF", "-b", "4096", "-O", "encrypt,verity,casefold", "-e", "panic")
			mkfsOn(t, filepath.Join(dir, "deep.img"), 64<<20, "mkfs.ext4", "-qF", "-O", "mmp")
		},
		dirs:   []string{"/srv", "/srv/data", "/srv/data/deep"},
		before: "mkdir /srv/old /srv/data/old; chattr -p 42 +P /srv/old; chattr +F /srv/data/old",
		check: func(t *testing.T, dir string) {
			for _, image := range []string{"data.img", "inner.img", "deep.img"} { // e2fsck also compares the quotas
				checked(t, "e2fsck", "-fn", filepath.Join(dir, image))
			}
		},
	},
	{
		name: "xfs", full: "XFS", guest: []string{"--fs", "xfs"}, hold: hold.XFS,
		make: func(t *testing.T, dir, _ string) {
			mkfsOn(t, filepath.Join(dir, "data.img"), 512<<20, "mkfs.xfs", "-qf")
		},
		disks: "  - {name: data, image: data.img, type: xfs, mount: /srv}\n",
		dirs:  []string{"/srv"},
		check: func(t *testing.T, dir string) { checked(t, "xfs_repair", "-n", "-f", filepath.Join(dir, "data.img")) },
	},
	{
		// The target of a new symbolic link is not in a page of the link: it is refused.
		name: "btrfs", full: "btrfs", guest: []string{"--fs", "btrfs"}, without: "ln -s ../new d1/link; ",
		make: func(t *testing.T, dir, _ string) {
			mkfsOn(t, filepath.Join(dir, "data.img"), 2<<30, "mkfs.btrfs", "-qf")
		},
		disks: "  - {name: data, image: data.img, type: btrfs, mount: /srv, options: commit=86400}\n",
		dirs:  []string{"/srv"},
		check: func(t *testing.T, dir string) {
			checked(t, "btrfs", "check", "--readonly", filepath.Join(dir, "data.img"))
		},
	},
	{
		name: "lvm", full: "a logical volume", guest: []string{"--under", "lvm", "--add", "/sbin/mkfs.ext4"},
		make: func(t *testing.T, dir, key string) {
			// The group has another disk, which the guests do not see.
			madeBy(t, dir, "K="+key+"; D=/dev/vda; "+makeVolume+makeFS+extendGroup+endVolume, 160<<20, "data.img", "more.img")
		},
		disks: "  - {name: data, image: data.img, lvm: a-group/srv, mount: /srv, options: commit=86400}\n",
		dirs:  []string{"/srv"},
		check: func(t *testing.T, dir string) { checked(t, "e2fsck", "-fn", volumeOf(t, dir)) },
	},
	{
		name: "lvm-xfs", full: "XFS in a logical volume", guest: []string{"--fs", "xfs", "--under", "lvm"}, hold: hold.XFS,
		make: func(t *testing.T, dir, _ string) {
			madeBy(t, dir, "D=/dev/vda; "+makeVolume+endVolume, 512<<20, "data.img")
			plain := volumeOf(t, dir)
			checked(t, "mkfs.xfs", "-qf", plain)
			onVolume(t, filepath.Join(dir, "data.img"), "a-group/srv", func(v device.Section) {
				from, err := os.Open(plain)
				if err != nil {
					t.Fatal(err)
				}
				defer from.Close()
				copyData(t, v, from)
			})
		},
		disks: "  - {name: data, image: data.img, lvm: a-group/srv, type: xfs, mount: /srv}\n",
		dirs:  []string{"/srv"},
		check: func(t *testing.T, dir string) { checked(t, "xfs_repair", "-n", "-f", volumeOf(t, dir)) },
	},
	{
		name: "luks", whole: true, full: "LUKS", guest: []string{"--under", "luks", "--add", "/sbin/mkfs.ext4", "--add", "KEY"},
		make: func(t *testing.T, dir, key string) {
			madeBy(t, dir, "K="+key+"; D=/dev/vda; "+makeLUKS+makeFS+endLUKS, 160<<20, "data.img")
		},
		disks: "  - {name: data, image: data.img, luks: KEY, mount: /srv}\n",
		dirs:  []string{"/srv"},
		check: func(*testing.T, string) {},
	},
	{
		name: "md", full: "a mirror", guest: []string{"--under", "md", "--add", "/sbin/mkfs.ext4"},
		make: func(t *testing.T, dir, key string) {
			madeBy(t, dir, "K="+key+"; D=/dev/vda; "+makeArray+makeFS+endArray, 160<<20, "data.img", "other.img")
		},
		disks: "  - {name: data, image: data.img, mirror: other.img, mount: /srv}\n",
		dirs:  []string{"/srv"},
		check: func(*testing.T, string) {},
	},
	{
		name: "stack", whole: true, full: "LVM on LUKS on a mirror", guest: []string{"--under", "md", "--under", "luks", "--under", "lvm", "--add", "/sbin/mkfs.ext4", "--add", "KEY"},
		make: func(t *testing.T, dir, key string) {
			madeBy(t, dir, "K="+key+"; D=/dev/vda; "+makeArray+makeLUKS+makeVolume+makeFS+endVolume+endLUKS+endArray, 192<<20, "data.img", "other.img")
		},
		disks: "  - {name: data, image: data.img, mirror: other.img, luks: KEY, lvm: a-group/srv, mount: /srv}\n",
		dirs:  []string{"/srv"},
		check: func(*testing.T, string) {},
	},
	{
		name: "logical", full: "XFS in a logical partition", guest: []string{"--fs", "xfs"}, hold: hold.XFS,
		make: func(t *testing.T, dir, _ string) {
			dividedDisk(t, filepath.Join(dir, "data.img"), "label: dos\nstart=2048, size=2048\nstart=6144, size=680000, type=5\nstart=8192, size=655360\n", 4<<20, 320<<20, "mkfs.xfs", "-qf")
		},
		disks: "  - {name: data, image: data.img, partition: 5, type: xfs, mount: /srv}\n",
		dirs:  []string{"/srv"},
		check: func(t *testing.T, dir string) {
			checked(t, "xfs_repair", "-n", "-f", taken(t, filepath.Join(dir, "data.img"), 4<<20, 320<<20))
		},
	},
}

// volumeOf copies the logical volume of data.img to a file.
func volumeOf(t *testing.T, dir string) string {
	t.Helper()
	plain := filepath.Join(dir, "plain.img")
	outOfVolume(t, filepath.Join(dir, "data.img"), "a-group/srv", plain)
	return plain
}

// madeBy lets a guest make what is on images, with a shell script: /dev/vda is the first of them.
func madeBy(t *testing.T, dir, script string, size int64, images ...string) {
	t.Helper()
	kernel, _, err := dirs.Kernel("")
	if err != nil {
		t.Fatal(err)
	}
	accel, err := partition.FindAccel(t.Context(), kernel)
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("/dev/shm", "made-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	spec := partition.Spec{
		Name: "maker", Dir: run, CPUs: thisMachine(t).CPUs, VCPUs: 1, Memory: 512 << 20, Kernel: kernel,
		Initramfs: filepath.Join(dir, "guest.cpio"), Append: "panic=-1", Accel: accel,
	}
	for i, name := range images {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
		spec.Devices = append(spec.Devices, partition.Disk{Name: fmt.Sprintf("made-%d", i), Image: path})
	}
	maker, err := supervisor.StartAppliance(t.Context(), spec, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer maker.Close()
	var r wire.ExecResult
	err = maker.Call(t.Context(), wire.Exec, wire.ExecRequest{Command: []string{"sh", "-euxc", "export MDADM_NO_UDEV=1; mkdir -p /run/cryptsetup /run/lvm /run/lock/lvm /run/mdadm /etc; " + script}}, &r)
	if err != nil || r.Status != 0 {
		t.Fatalf("make %v: %v: %s", images, err, r.Output)
	}
	if err := maker.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// notLazy makes mke2fs(8) write the inode tables. Otherwise the kernel does it after a mount, when it has
// nothing better to do, and the image then has them in addition to what discards measures.
const notLazy = "lazy_itable_init=0"

// Steps of the scripts of madeBy. Nothing waits for udev, which does not run there. The volume is in two pieces.
const (
	makeFS    = "mkfs.ext4 -q -E " + notLazy + " $D; "
	makeGroup = `L='activation{udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0} devices{use_devicesfile=0 obtain_device_list_from_udev=0} backup{backup=0 archive=0}'
lvm pvcreate --config "$L" -qy $D; lvm vgcreate --config "$L" -q a-group $D; `
	makeVolume  = makeGroup + `lvm lvcreate --config "$L" -qqy -Wn -Zn -l 9 -n srv a-group; lvm lvcreate --config "$L" -qqy -Wn -Zn -l 2 -n between a-group; lvm lvextend --config "$L" -qq -l +100%FREE a-group/srv; D=/dev/mapper/a--group-srv; `
	extendGroup = `lvm vgextend --config "$L" -qq a-group /dev/vdb; `
	endVolume   = `lvm vgchange --config "$L" -qan a-group; `
	makeLUKS    = `cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $K $D; cryptsetup open --key-file $K $D made; D=/dev/mapper/made; `
	endLUKS     = `cryptsetup close made; `
	makeArray   = `yes | mdadm --create /dev/md/made --run --level=1 --raid-devices=2 --assume-clean --bitmap=none $D /dev/vdb; D=/dev/md/made; `
	endArray    = `mdadm --stop /dev/md/made; `
)

// dividedDisk makes an image with a partition table by sfdisk(8), and puts a file system into it at an offset.
func dividedDisk(t *testing.T, image, table string, off, size int64, mkfs ...string) {
	t.Helper()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, off+size+16<<20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/sbin/sfdisk", "-q", image)
	cmd.Stdin = strings.NewReader(table)
	if out, err := cmd.CombinedOutput(); err != nil {
		tier.Lacks(t, fmt.Sprintf("sfdisk: %v: %s (scripts/setup.sh installs fdisk)", err, out))
	}
	part := image + ".part"
	mkfsOn(t, part, size, mkfs[0], mkfs[1:]...)
	checked(t, "dd", "if="+part, "of="+image, "bs=1M", fmt.Sprintf("seek=%d", off>>20), "conv=notrunc,sparse")
}

// taken copies a stretch of an image to a file.
func taken(t *testing.T, image string, off, size int64) string {
	t.Helper()
	part := image + ".part"
	checked(t, "dd", "if="+image, "of="+part, "bs=1M", fmt.Sprintf("skip=%d", off>>20), fmt.Sprintf("count=%d", size>>20))
	return part
}

// mkfsOn makes an image of a size with a file system.
func mkfsOn(t *testing.T, image string, size int64, program string, args ...string) {
	t.Helper()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	checked(t, program, append(args, image)...)
}

// checked runs a program that must succeed.
func checked(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v: %s", program, args, err, out)
	}
}

// stand returns a pair with such disks, which is not up yet, and the directory of the disks.
func (u under) stand(t *testing.T) (*standing, string) {
	t.Helper()
	// The key has the same path in the guests, which have a tmpfs on /tmp.
	keys, err := os.MkdirTemp("/var/tmp", "understudy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(keys) })
	key := filepath.Join(keys, "key")
	if err := os.WriteFile(key, []byte("a key that this machine only has for the test"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := stand(t, plainDisk, strings.ReplaceAll(u.disks, "KEY", key), "256MiB", "384MiB")
	dir := filepath.Dir(s.file)
	_, modules, err := dirs.Kernel("")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"initramfs", "-o", filepath.Join(dir, "guest.cpio"), "--modules", modules}
	for _, a := range u.guest {
		args = append(args, strings.ReplaceAll(a, "KEY", key))
	}
	if _, err := understudy(t, args...); err != nil {
		t.Fatal(err)
	}
	u.make(t, dir, key)
	return s, dir
}

// works leaves all kinds of things unsaved in each mount of the active side, and returns the listings of the mounts.
func (u under) works(s *standing) (want map[string]string) {
	s.t.Helper()
	s.settings("left", u.hold)
	s.did("left", u.dirs[0], "cd %[1]s; "+u.before)
	for _, script := range []string{saved, strings.Replace(work, u.without, "", 1)} {
		for _, d := range u.dirs {
			s.did("left", d, script)
		}
	}
	want = make(map[string]string)
	for _, d := range u.dirs {
		want[d] = s.list("left", d)
	}
	return want
}

// TestUnder checks that whatever a file system is, and whatever layers are under it, a takeover
// brings over exactly what is unsaved in it, and that it is on the disk when the pair has gone down.
func TestUnder(t *testing.T) {
	for _, u := range unders {
		t.Run(u.name, func(t *testing.T) {
			if u.full != "" {
				tier.Full(t, u.full)
			}
			s, dir := u.stand(t)
			s.up()
			if !u.whole {
				s.discards(dir, u.dirs[0])
			}
			want := u.works(s)
			st := s.tookOver()
			t.Logf("%d files, %d bytes; %+v; %v", st.Takeover.Files, st.Takeover.Bytes, st.Takeover.Commits, st.Takeover.Steps)
			for _, d := range u.dirs {
				if got := s.list("right", d); got != want[d] {
					t.Errorf("%s is\n%s\nand was\n%s", d, got, want[d])
				}
			}
			if _, err := understudy(t, "down"); err != nil {
				t.Fatal(err)
			}
			u.check(t, dir)
			if u.full == "" {
				return
			}
			s.up() // it is on the disk, not just in some cache
			for _, d := range u.dirs {
				if got := s.list("left", d); got != want[d] {
					t.Errorf("once more up, %s is\n%s\nand was\n%s", d, got, want[d])
				}
			}
			if _, err := understudy(t, "down"); err != nil {
				t.Fatal(err)
			}
		})
	}
}
