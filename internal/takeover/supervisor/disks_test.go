package supervisor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"understudy.dev/understudy/internal/lab/lvmdisk"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

// TestFits checks that a file system that a takeover could not bring over is refused by name, from the disk itself.
func TestFits(t *testing.T) {
	tests := []struct {
		name, command string
		kind          pair.FSType
		want          string // empty if it fits
	}{
		{"ext4", "mkfs.ext4 -q -F", pair.Ext4, ""},
		{"ext3", "mkfs.ext3 -q -F", pair.Ext3, ""},
		{"ext3 by ext4", "mkfs.ext3 -q -F", pair.Ext4, ""},
		{"quota", "mkfs.ext4 -q -F -O quota,project", pair.Ext4, ""},
		{"ext4 by ext3", "mkfs.ext4 -q -F", pair.Ext3, "say type: ext4"},
		{"mmp", "mkfs.ext4 -q -F -O mmp", pair.Ext4, ""},
		{"an external journal", "mke2fs -q -F -O journal_dev", pair.Ext4, "journal_dev"},
		{"ext2 by ext3", "mke2fs -q -F -t ext2", pair.Ext3, "tune2fs -j"},
		{"ext2 by ext4", "mke2fs -q -F -t ext2", pair.Ext4, ""},
		{"a journal elsewhere", "mkfs.ext4 -q -F", pair.Ext4, "journal on another device"},
		{"xfs by ext4", "mkfs.xfs -q -f", pair.Ext4, "say type: xfs"},
		{"btrfs by ext4", "mkfs.btrfs -q -f", pair.Ext4, "say type: btrfs"},
		{"ext4 by xfs", "mkfs.ext4 -q -F", pair.XFS, "say type: ext4"},
		{"btrfs by xfs", "mkfs.btrfs -q -f", pair.XFS, "say type: btrfs"},
		{"nothing by xfs", "true", pair.XFS, "mkfs.xfs"},
		{"xfs", "mkfs.xfs -q -f", pair.XFS, ""},
		{"old xfs", "mkfs.xfs -q -f -m crc=0", pair.XFS, "version 4"},
		{"an external log", "mkfs.xfs -q -f -l logdev=LOG,size=70m", pair.XFS, "log on another device"},
		{"realtime", "mkfs.xfs -q -f -r rtdev=LOG,size=64m", pair.XFS, "a realtime section"},
		{"btrfs", "mkfs.btrfs -q -f --csum xxhash", pair.Btrfs, ""},
		{"btrfs on two", "mkfs.btrfs -q -f LOG", pair.Btrfs, "on 2 devices"},
		{"gpt", "magic", pair.Ext4, "partition: N"},
		{"mbr", "magic", pair.Ext4, "partition: N"},
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
			log := filepath.Join(t.TempDir(), "log.img")
			if err := errors.Join(os.WriteFile(log, nil, 0o600), os.Truncate(log, 256<<20)); err != nil {
				t.Fatal(err)
			}
			words := append(strings.Fields(strings.ReplaceAll(tt.command, "LOG", log)), path)
			cmd := exec.Command(words[0], words[1:]...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Skipf("%s: %v: %s", tt.command, err, out)
			}
			if tt.name == "a journal elsewhere" { // mkfs makes that only on a block device
				for _, set := range []string{"ssv journal_inum 0", "ssv journal_dev 0x801"} {
					if out, err := exec.Command("debugfs", "-w", "-R", set, path).CombinedOutput(); err != nil {
						t.Fatalf("%s: %v: %s", set, err, out)
					}
				}
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

// writeMagic writes to a disk the mark of what a program of Debian's would make there:
// sfdisk(8), cryptsetup(8), pvcreate(8).
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

// TestAble checks that a guest that could not check its disk after a crash is refused beforehand.
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

// TestRehearsalIsAlike checks that the disk that a takeover is rehearsed on has the features of
// the pair's disk.
func TestRehearsalIsAlike(t *testing.T) {
	for _, tt := range []struct {
		command string
		kind    pair.FSType
	}{
		{"mkfs.xfs -q -f", pair.XFS},
		{"mkfs.xfs -q -f -m finobt=0,reflink=0,bigtime=0,inobtcount=0 -i sparse=0,size=512 -b size=1024 -n size=8192", pair.XFS},
		{"mkfs.xfs -q -f -m rmapbt=1 -i nrext64=1 -s size=4096", pair.XFS},
		{"mkfs.xfs -q -f -i nrext64=0,exchange=0 -n parent=0", pair.XFS},
		{"mkfs.btrfs -q -f -O block-group-tree", pair.Btrfs},
		{"mkfs.btrfs -q -f -O ^block-group-tree", pair.Btrfs},
		{"mkfs.btrfs -q -f --csum blake2 -n 32768", pair.Btrfs},
		{"mkfs.btrfs -q -f -M", pair.Btrfs},
		{"mkfs.ext4 -q -F -b 1024 -O bigalloc", pair.Ext4},
	} {
		t.Run(tt.command, func(t *testing.T) {
			dir, err := os.MkdirTemp("/dev/shm", "rehearsal-") // on a tmpfs, like a run directory
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			d := pair.Disk{Name: "data", Image: filepath.Join(dir, "disk.img"), Type: tt.kind}
			if err := errors.Join(os.WriteFile(d.Image, nil, 0o600), os.Truncate(d.Image, 512<<20)); err != nil {
				t.Fatal(err)
			}
			words := append(strings.Fields(tt.command), d.Image)
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Skipf("%s: %v: %s", tt.command, err, out)
			}
			options, without := optionsOf(t, d)
			again := d
			again.Image = filepath.Join(dir, "rehearsal")
			if err := device.MakeRehearsal(context.Background(), again.Image, string(tt.kind), options, without); err != nil {
				t.Fatal(err)
			}
			if got, lacks := optionsOf(t, again); !slices.Equal(got, options) || !slices.Equal(lacks, without) {
				t.Errorf("the rehearsal has %q, without %q, and the disk %q, without %q", got, lacks, options, without)
			}
			if st, err := os.Stat(again.Image); err != nil || st.Sys().(*syscall.Stat_t).Blocks*512 > 24<<20 {
				t.Errorf("it takes %d KiB of memory: %v", st.Sys().(*syscall.Stat_t).Blocks/2, err)
			}
		})
	}
}

func optionsOf(t *testing.T, d pair.Disk) (options, without []string) {
	t.Helper()
	f, err := os.Open(d.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	options, without, err = makeOptions(d, f)
	if err != nil {
		t.Fatal(err)
	}
	return options, without
}

// TestPartition: a file system is looked for in the partition that is named, and nowhere else.
func TestPartition(t *testing.T) {
	dir := t.TempDir()
	image, part := filepath.Join(dir, "disk.img"), filepath.Join(dir, "part.img")
	for path, size := range map[string]int64{image: 128 << 20, part: 96 << 20} {
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
	}
	divide := exec.Command("/sbin/sfdisk", "-q", image)
	divide.Stdin = strings.NewReader("label: gpt\nstart=2048, size=4096\nstart=8192, size=196608\n")
	for _, cmd := range []*exec.Cmd{divide, exec.Command("mkfs.ext4", "-qF", part),
		exec.Command("dd", "if="+part, "of="+image, "bs=4M", "seek=1", "conv=notrunc,sparse")} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("%v: %v: %s (scripts/setup.sh installs fdisk)", cmd.Args, err, out)
		}
	}
	for _, tt := range []struct {
		image string
		part  int
		want  string // empty if it fits
	}{
		{image, 2, ""}, {image, 0, "partition: N"}, {image, 1, "no file system that we know"}, {image, 3, "which has 1, 2"}, {part, 1, "leave `partition` out"},
	} {
		h, err := fence.Keep(tt.image)
		if err != nil {
			t.Fatal(err)
		}
		d := pair.Disk{Name: "data", Image: tt.image, Part: tt.part, Type: pair.Ext4}
		on, err := (&Supervisor{holds: map[string]*fence.Hold{tt.image: h}}).fileSystemOn(d)
		if err == nil {
			err = fits(d, on)
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("partition %d of %s: %v, want %q", tt.part, filepath.Base(tt.image), err, tt.want)
		}
		h.Close()
	}
}

// TestUnfinishedDisk checks that a disk in between is not reported as one without a file system, for which one
// should be made.
func TestUnfinishedDisk(t *testing.T) {
	for typ, at := range map[pair.FSType]int64{pair.Ext4: 1024, pair.XFS: 0, pair.Btrfs: 64 << 10} {
		image := make([]byte, 1<<20)
		copy(image[at:], takeover.Veil)
		err := fits(pair.Disk{Name: "data", Image: "data.img", Type: typ}, bytes.NewReader(image))
		if err == nil || !strings.Contains(err.Error(), "salvage apply --finish") {
			t.Errorf("%s: %v", typ, err)
		}
	}
}

// TestSettle checks that every disk and root image is settled before it is held, and that Start fails if one cannot be
// settled.
func TestSettle(t *testing.T) {
	broken := errors.New("no redo file")
	t.Chdir(t.TempDir())
	for _, image := range []string{"a.img", "b.img", "c.img", "left.img"} {
		if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var settled []string
	s := newSupervisor(&pair.Pair{
		Disks:      []pair.Disk{{Image: "a.img", Mirror: "b.img"}, {Image: "c.img"}},
		Partitions: [2]pair.Partition{{Root: "left.img"}, {}},
	}, Options{Dir: filepath.Join(t.TempDir(), "run"), Log: io.Discard, Settle: func(_ context.Context, disk string) error {
		settled = append(settled, disk)
		if disk == "left.img" {
			return broken
		}
		return nil
	}}, nil)
	if err := s.start(t.Context()); !errors.Is(err, broken) || !slices.Equal(settled, []string{"a.img", "b.img", "c.img", "left.img"}) {
		t.Errorf("%v, settled %v", err, settled)
	}
	s.Pair.Disks[1].Image, settled = "gone.img", nil
	if err := s.start(t.Context()); !errors.Is(err, os.ErrNotExist) || len(settled) != 2 {
		t.Errorf("a disk that is not there: %v, settled %v", err, settled)
	}
}

// TestUnderneath checks by the bytes of the images that what lies under a file system is what
// the pair says. The md superblocks are made by hand (include/uapi/linux/raid/md_p.h).
func TestUnderneath(t *testing.T) {
	const size, data = 64 << 20, 1 << 20
	ext4 := filepath.Join(t.TempDir(), "ext4")
	if err := errors.Join(os.WriteFile(ext4, nil, 0o600), os.Truncate(ext4, 32<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-qF", ext4).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v: %s", err, out)
	}
	fs, err := os.ReadFile(ext4)
	if err != nil {
		t.Fatal(err)
	}
	plain := func() []byte { b := make([]byte, size); copy(b, fs); return b }
	array := func(at, level int, uuid byte, content string) []byte { // version 1.2, or 1.0 if it is at the end
		b, le := make([]byte, size), binary.LittleEndian
		off := data
		if at != 4096 {
			off = 0
			copy(b, fs)
		} else {
			copy(b[off:], fs)
			copy(b[off:], content)
		}
		s := b[at:]
		le.PutUint32(s, 0xa92b4efc)
		le.PutUint32(s[4:], 1)
		s[16] = uuid
		le.PutUint32(s[72:], uint32(level))
		le.PutUint64(s[80:], 32<<20/512)
		le.PutUint32(s[92:], 2)
		le.PutUint64(s[128:], uint64(off)/512)
		le.PutUint64(s[144:], uint64(at)/512)
		return b
	}
	volume := func(content []byte, segments ...lvmdisk.Segment) []byte {
		b := make([]byte, size)
		lvmdisk.Write(b, lvmdisk.UUID, lvmdisk.Group(size, "", lvmdisk.Volume("root", lvmdisk.Visible, segments...)), lvmdisk.Header)
		a, err := disk.At(bytes.NewReader(b), size, disk.Where{Volume: "vg0/root"})
		if err != nil {
			return b
		}
		for _, s := range a.At {
			content = content[copy(b[s.Off:][:s.Len], content):]
		}
		return b
	}
	pieces := []lvmdisk.Segment{lvmdisk.Linear(4, 300), lvmdisk.Linear(0, 3)}
	thin := lvmdisk.Segment{Count: 1, Is: "type = \"thin\"\n"}
	const atEnd = size - 8<<10
	marked := func(at int, mark string) []byte { b := plain(); copy(b[at:], mark); return b }
	const luks = "LUKS\xba\xbe"
	for _, tt := range []struct {
		name        string
		d           pair.Disk
		image, more []byte
		want        string // empty if it is as described
	}{
		{"plain", pair.Disk{}, plain(), nil, ""},
		{"lvm", pair.Disk{LVM: "a/b"}, marked(512, "LABELONE"), nil, ""},
		{"no lvm", pair.Disk{LVM: "a/b"}, plain(), nil, "has not what lvm: says, but a file system of the ext family on itself: leave out lvm:"},
		{"a linear volume", pair.Disk{LVM: "vg0/root"}, volume(fs, pieces...), nil, ""},
		{"a linear volume of another name", pair.Disk{LVM: "vg0/srv"}, volume(fs, pieces...), nil, ""}, // the guest may find it
		{"an empty linear volume", pair.Disk{LVM: "vg0/root"}, volume(nil, pieces...), nil, "no file system that we know"},
		{"a linear volume with XFS", pair.Disk{LVM: "vg0/root", Type: pair.XFS}, volume(fs, pieces...), nil, "has a file system of the ext family: say type: ext4"},
		{"a thin volume", pair.Disk{LVM: "vg0/root"}, volume(nil, thin), nil, ""},
		{"XFS in a thin volume", pair.Disk{LVM: "vg0/root", Type: pair.XFS}, volume(nil, thin), nil, "xfs on lvm: is not supported here: logical volume vg0/root: it is not linear"},
		{"luks", pair.Disk{LUKS: "/key"}, marked(0, luks), nil, ""},
		{"luks, and lvm in it", pair.Disk{LUKS: "/key", LVM: "a/b"}, marked(0, luks), nil, ""},
		{"no luks", pair.Disk{LUKS: "/key"}, marked(512, "LABELONE"), nil, "a physical volume of LVM: name the logical volume"},
		{"a mirror", pair.Disk{}, array(4096, 1, 1, ""), array(4096, 1, 1, ""), ""},
		{"a mirror at the end", pair.Disk{}, array(atEnd, 1, 1, ""), array(atEnd, 1, 1, ""), ""},
		{"luks on a mirror", pair.Disk{LUKS: "/key"}, array(4096, 1, 1, luks), array(4096, 1, 1, luks), ""},
		{"no luks on a mirror", pair.Disk{LUKS: "/key"}, array(4096, 1, 1, ""), array(4096, 1, 1, ""), "has not what luks: says"},
		{"one disk of a mirror", pair.Disk{}, array(4096, 1, 1, ""), nil, "name the other disk of the mirror"},
		{"one that looks plain", pair.Disk{}, array(atEnd, 1, 1, ""), nil, "name the other disk of the mirror"},
		{"no mirror", pair.Disk{}, plain(), plain(), "is no member of an array"},
		{"half of one", pair.Disk{}, array(4096, 1, 1, ""), plain(), "is no member of an array"},
		{"another level", pair.Disk{}, array(4096, 5, 1, ""), array(4096, 5, 1, ""), "level 5"},
		{"different arrays", pair.Disk{}, array(4096, 1, 1, ""), array(4096, 1, 2, ""), "different arrays"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := tt.d
			d.Name, d.Type, d.Image = "data", cmp.Or(d.Type, pair.Ext4), filepath.Join(t.TempDir(), "a")
			err := os.WriteFile(d.Image, tt.image, 0o600)
			if tt.more != nil {
				d.Mirror = d.Image + "2"
				err = errors.Join(err, os.WriteFile(d.Mirror, tt.more, 0o600))
			}
			s := &Supervisor{Pair: &pair.Pair{Disks: []pair.Disk{d}}, options: Options{Log: io.Discard}, holds: make(map[string]*fence.Hold)}
			if err == nil {
				err = s.hold(fence.Keep)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.release()
			err = s.checkDisks()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
