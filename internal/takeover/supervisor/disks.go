package supervisor

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// Inspect checks the disks of a pair that is not up, as Start would, and releases them again. It also
// checks that there is room for the run directory dir. log gets what is not an error, but worth knowing.
func Inspect(p *pair.Pair, dir string, log io.Writer) error {
	s := newSupervisor(p, Options{Dir: dir, Log: log}, nil)
	err := s.checkRoom(s.memory() - min(s.memory(), usedIn(dir)))
	if err == nil {
		err = s.hold(fence.Keep)
	}
	if err == nil {
		err = s.checkDisks()
	}
	return errors.Join(err, s.release())
}

// usedIn returns how many bytes are taken by those files of a run directory that Start would remove.
func usedIn(dir string) (used uint64) {
	entries, _ := os.ReadDir(dir) // there may be none
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, e.Name()), &st) == nil {
			used += uint64(st.Blocks) * 512
		}
	}
	return used
}

// checkDisks checks that a takeover can bring over the file systems on the shared disks, as
// their superblocks say, and that the layers under them are those that the pair describes.
func (s *Supervisor) checkDisks() error {
	for _, d := range s.Pair.Disks {
		fs, err := s.fileSystemOn(d)
		if err == nil && fs != nil {
			err = fits(d, fs)
		}
		if err != nil {
			return err
		}
		for _, image := range d.Images() {
			if lacks, err := missingRoom(s.holds[image]); err != nil {
				return err
			} else if lacks > 0 {
				s.log("disk %s: its image %s is sparse, and the file system under it lacks %d MiB of what it may grow to: the pair stands still when that is full", d.Name, image, lacks>>20)
			}
		}
	}
	return nil
}

// leastRoom is enough room, in bytes, for a guest to write something.
const leastRoom = 16 << 20

// hasRoom reports whether each image has room to grow. It is false if one is a block device, whose room is not known.
func (s *Supervisor) hasRoom() bool {
	for _, image := range s.images() {
		h := s.holds[image]
		if h == nil || h.Device {
			return false
		}
		if free, err := freeUnder(h); err != nil || free < leastRoom {
			return false
		}
	}
	return true
}

// fileSystemOn returns the part of a disk that has its file system, as far as this machine can see
// it: nil if only a guest can.
func (s *Supervisor) fileSystemOn(d pair.Disk) (io.ReaderAt, error) {
	var members []*io.SectionReader
	for _, image := range d.Images() {
		part, err := partOf(d, image, s.holds[image])
		if err != nil {
			return nil, err
		}
		members = append(members, part)
	}
	on := members[0]
	if d.Mirror != "" {
		var err error
		if on, err = mirrorOf(d, members); err != nil {
			return nil, err
		}
	} else if _, err := disk.Array(on, on.Size()); err == nil { // the data of a member may begin where the disk begins
		return nil, fmt.Errorf("disk %s: %s is a member of an array of md: name the other disk of the mirror (mirror: IMAGE)", d.Name, d.Image)
	} else if !errors.Is(err, disk.ErrNoMember) {
		return nil, fmt.Errorf("disk %s: %s: %w: remove its md superblock if it is in no array any more (mdadm --zero-superblock)", d.Name, d.Image, err)
	}
	switch {
	case d.LUKS != "":
		return nil, begins(d, on, "LUKS\xba\xbe", "luks:", 0)
	case d.LVM == "":
		return on, nil
	}
	// The label is in one of the first four sectors (lib/label/label.h, LABEL_SCAN_SECTORS).
	if err := begins(d, on, "LABELONE", "lvm:", 0, 512, 1024, 1536); err != nil {
		return nil, err
	}
	h := s.holds[d.Image]
	a, err := volumeOn(d, h)
	switch {
	case err == nil:
		return device.On(h.File, a), nil
	case d.Type.Ext():
		return nil, nil
	}
	return nil, fmt.Errorf("disk %s: %s on lvm: is not supported here: %w", d.Name, d.Type, err)
}

// volumeOn returns where a disk's logical volume is on its image. It fails if only a guest can see it.
func volumeOn(d pair.Disk, image *fence.Hold) (disk.Area, error) {
	if d.Mirror != "" || d.LUKS != "" {
		return disk.Area{}, fmt.Errorf("it lies on %s", strings.Join(d.Layers(), " and "))
	}
	return disk.At(image, image.Size, whereOf(d))
}

// whereOf returns the part of its image that has a disk's file system, if nothing but a volume lies between.
func whereOf(d pair.Disk) disk.Where {
	if d.LVM != "" {
		return disk.Where{Volume: d.LVM}
	}
	return disk.Where{Part: d.Part}
}

// seen reports whether this machine can see a disk's file system.
func (s *Supervisor) seen(d pair.Disk) bool {
	if !d.Layered() {
		return true
	}
	_, err := volumeOn(d, s.holds[d.Image])
	return err == nil
}

// partOf returns the part of an image that belongs to the pair: all of it, or a partition.
func partOf(d pair.Disk, image string, h *fence.Hold) (*io.SectionReader, error) {
	if d.Part == 0 {
		return io.NewSectionReader(h, 0, h.Size), nil
	}
	p, err := disk.Find(h, h.Size, d.Part)
	if errors.Is(err, disk.ErrNoTable) {
		return nil, fmt.Errorf("disk %s: %s has no partition table: leave `partition` out", d.Name, image)
	}
	if err != nil {
		return nil, fmt.Errorf("disk %s: %s: %w", d.Name, image, err)
	}
	return io.NewSectionReader(h, p.Off, p.Len), nil
}

// mirrorOf checks that two disks are a mirror, and returns the data area of the first one.
func mirrorOf(d pair.Disk, disks []*io.SectionReader) (*io.SectionReader, error) {
	var array string
	var data *io.SectionReader
	for i, on := range disks {
		m, err := disk.Array(on, on.Size())
		switch {
		case errors.Is(err, disk.ErrNoMember):
			return nil, fmt.Errorf("disk %s: %s is no member of an array of md: leave out mirror:, or make one (mdadm --create --level 1)", d.Name, d.Images()[i])
		case err != nil:
			return nil, fmt.Errorf("disk %s: %s: %w", d.Name, d.Images()[i], err)
		case m.Level != 1 || m.Disks != 2:
			return nil, fmt.Errorf("disk %s: %s is of an array of level %d on %d disks, and only mirrors of two are supported (mdadm --grow)", d.Name, d.Images()[i], m.Level, m.Disks)
		case i > 0 && m.Array != array:
			return nil, fmt.Errorf("disk %s: %s and %s are of different arrays", d.Name, d.Image, d.Mirror)
		}
		if array = m.Array; i == 0 {
			data = io.NewSectionReader(on, m.Off, m.Len)
		}
	}
	return data, nil
}

// begins checks that a disk has a mark at one of the given offsets.
func begins(d pair.Disk, on io.ReaderAt, mark, key string, places ...int64) error {
	b := make([]byte, len(mark))
	for _, at := range places {
		if _, err := on.ReadAt(b, at); err == nil && string(b) == mark {
			return nil
		}
	}
	content := markOf(on)
	if content == "" {
		content = "nothing that we know (blkid may)"
		if _, err := ext4.Open(on); !errors.Is(err, ext4.ErrNotExt) {
			content = "a file system of the ext family on itself: leave out " + key
		}
	}
	return fmt.Errorf("disk %s: %s has not what %s says, but %s", d.Name, d.Image, key, content)
}

// checkLayered activates the layers of a disk in a guest, before the guest mounts it. It checks the file system, if only
// a guest can see that.
func (s *Supervisor) checkLayered(ctx context.Context, sd *side, d pair.Disk) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not done within %v", startLimit))
	defer cancel()
	size, err := sd.activate(ctx, d.Name)
	if err != nil || s.seen(d) { // which was checked before
		return err
	}
	image := newGuestImage(ctx, sd, d.Name, size, nil)
	if err := fits(d, image); err != nil {
		return err
	}
	return s.record(func(r *Record) {
		for i := range r.Disks {
			if r.Disks[i].Name == d.Name {
				r.Disks[i].UUID = uuidOn(image)
			}
		}
	})
}

// uuidOf returns the UUID of a disk's file system; empty if this machine cannot see that.
func (s *Supervisor) uuidOf(d pair.Disk) string {
	if s.holds[d.Image] == nil {
		return ""
	}
	on, err := s.fileSystemOn(d)
	if err != nil || on == nil {
		return ""
	}
	return uuidOn(on)
}

// uuidOn returns the UUID of the file system on a disk; empty if there is none that is known.
func uuidOn(disk io.ReaderAt) string {
	fs, err := salvage.Identify(disk)
	if err != nil {
		return ""
	}
	return fs.UUID.String()
}

// unfinished describes a disk that is in between. Start finishes its commit.
const unfinished = "an interrupted commit of understudy salvage apply: finish that (understudy salvage apply --finish --disk IMAGE)"

// magics are the marks of other things than an ext file system, for error texts: the
// offset, the bytes, and what to do.
var magics = []struct {
	off         int
	magic, what string
}{
	{0, takeover.Veil, unfinished},
	{1024, takeover.Veil, unfinished},
	{64 << 10, takeover.Veil, unfinished},
	{512, "EFI PART", "a partition table: say which has the file system (partition: N)"},
	{0, "XFSB", "XFS: say type: xfs"},
	{65536 + 64, "_BHRfS_M", "btrfs: say type: btrfs"},
	{0, "LUKS\xba\xbe", "LUKS: name the file in the guests that has the key (luks: PATH)"},
	{512, "LABELONE", "a physical volume of LVM: name the logical volume (lvm: GROUP/NAME)"},
	{510, "\x55\xaa", "a partition table: say which has the file system (partition: N)"},
}

// fits checks that a takeover can bring over the file system of one disk.
func fits(d pair.Disk, on io.ReaderAt) error {
	if !d.Type.Ext() {
		_, err := featuresOf(d, on)
		return err
	}
	fs, err := ext4.Open(on)
	if errors.Is(err, ext4.ErrNotExt) {
		return fmt.Errorf("disk %s: %s has %s", d.Name, d.Image, contentOf(on, d.Type))
	}
	if err != nil {
		return fmt.Errorf("disk %s: %s: %w", d.Name, d.Image, err)
	}
	journal := fs.Super.Compat&ext4.CompatHasJournal != 0
	switch {
	case d.Type == pair.Ext3 && fs.Super.Incompat&ext4.IncompatExtents != 0:
		return fmt.Errorf("disk %s: %s has extents, which ext3 does not know: say type: ext4", d.Name, d.Image)
	case d.Type == pair.Ext3 && !journal: // the kernel mounts it as ext4 only (fs/ext4/ext4.h, ext3_feature_set_ok)
		return fmt.Errorf("disk %s: %s has no journal, and so is no ext3: say type: ext4, or make one (tune2fs -j)", d.Name, d.Image)
	}
	if err := morgue.FitsExt(&fs.Super); err != nil {
		return fmt.Errorf("disk %s: %s %w", d.Name, d.Image, err)
	}
	return nil
}

// featuresOf returns the features of the XFS or btrfs on a disk, as d.Type says, if a
// takeover can bring it over.
func featuresOf(d pair.Disk, on io.ReaderAt) (salvage.Features, error) {
	f, err := salvage.FeaturesOf(on)
	if errors.Is(err, salvage.ErrNoFileSystem) {
		if _, err := ext4.Open(on); !errors.Is(err, ext4.ErrNotExt) {
			return f, fmt.Errorf("disk %s: %s has a file system of the ext family: say type: ext4", d.Name, d.Image)
		}
		return f, fmt.Errorf("disk %s: %s has %s", d.Name, d.Image, contentOf(on, d.Type))
	}
	switch {
	case err != nil:
		return f, fmt.Errorf("disk %s: %s: %w", d.Name, d.Image, err)
	case f.Family != string(d.Type):
		return f, fmt.Errorf("disk %s: %s has %s", d.Name, d.Image, contentOf(on, d.Type))
	case f.Lacks != "":
		return f, fmt.Errorf("disk %s: %s %s", d.Name, d.Image, f.Lacks)
	}
	return f, nil
}

// makeOptions returns the options of mkfs that make a file system with the features of the one on a
// disk, and options that turn off features which that does not have, as far as mkfs knows them.
func makeOptions(d pair.Disk, on io.ReaderAt) (options, without []string, err error) {
	if !d.Type.Ext() {
		f, err := featuresOf(d, on)
		return f.Make, f.Without, err
	}
	fs, err := ext4.Open(on)
	if err != nil {
		return nil, nil, fmt.Errorf("disk %s: %w", d.Name, err)
	}
	return fs.Super.MakeOptions(), nil, nil
}

// contentOf says what a disk has instead of a file system of the type wanted. That may be somebody's
// only copy, even if we do not recognize it.
func contentOf(on io.ReaderAt, wanted pair.FSType) string {
	return cmp.Or(markOf(on), fmt.Sprintf("no file system that we know (blkid may): make one if nothing on it is needed (mkfs.%s)", wanted))
}

// markOf says which of magics a disk has, and what to do then; empty if it has none.
func markOf(on io.ReaderAt) string {
	for _, m := range magics {
		b := make([]byte, len(m.magic))
		if _, err := on.ReadAt(b, int64(m.off)); err == nil && bytes.Equal(b, []byte(m.magic)) {
			return m.what
		}
	}
	return ""
}

// missingRoom returns how many bytes of a sparse image the file system under it has no room
// for now.
func missingRoom(h *fence.Hold) (int64, error) {
	if h.Device {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(h.Fd()), &st); err != nil {
		return 0, fmt.Errorf("measure %s: %w", h.Name(), err)
	}
	free, err := freeUnder(h)
	holes := st.Size - st.Blocks*512
	return max(0, holes-free), err
}

// freeUnder returns how many bytes are free in the file system under an image.
func freeUnder(h *fence.Hold) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(h.Fd()), &fs); err != nil {
		return 0, fmt.Errorf("measure the file system of %s: %w", h.Name(), err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}
