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

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover"
)

// Inspect looks at the disks of a pair that is not up as Start would, and lets them go
// again, and at the room for a run directory, dir. log is told what is not wrong, but worth knowing.
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

// usedIn is how many bytes the files take in a run directory that Start would remove.
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

// checkDisks checks that the file systems on the shared disks are such as a takeover
// brings over, as their own superblocks say, and that under them lies what the pair says.
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

// leastRoom is what a guest can surely write with.
const leastRoom = 16 << 20

// hasRoom reports whether each image that is a file has room to grow. Of a block device nobody knows.
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

// fileSystemOn is what has a disk's file system, as far as this machine sees it: nil if only a guest
// does.
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
	} else if _, err := disk.Array(on, on.Size()); err == nil { // its data may well begin with the disk
		return nil, fmt.Errorf("disk %s: %s is a member of an array of md: name the other disk of the mirror (mirror: IMAGE)", d.Name, d.Image)
	} else if !errors.Is(err, disk.ErrNoMember) {
		return nil, fmt.Errorf("disk %s: %s: %w: remove its md superblock if it is in no array any more (mdadm --zero-superblock)", d.Name, d.Image, err)
	}
	switch {
	case d.LUKS != "":
		return nil, begins(d, on, "LUKS\xba\xbe", "luks:", 0)
	case d.LVM != "": // the label is in one of the first four sectors (lib/label/label.h, LABEL_SCAN_SECTORS)
		return nil, begins(d, on, "LABELONE", "lvm:", 0, 512, 1024, 1536)
	}
	return on, nil
}

// partOf is what of an image is the pair's: all of it, or a partition.
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

// mirrorOf is the data of the first of two disks that are a mirror.
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

// begins checks that a disk has a mark at one of these places.
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

// checkLayered checks the file system of a disk that only a guest sees, as that sees it, before it is
// mounted there.
func (s *Supervisor) checkLayered(ctx context.Context, sd *side, d pair.Disk) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not done within %v", startLimit))
	defer cancel()
	size, err := sd.activate(ctx, d.Name)
	if err != nil {
		return err
	}
	return fits(d, newGuestImage(ctx, sd, d.Name, size, nil))
}

// unfinished is what a disk in between has. Start finishes it.
const unfinished = "an interrupted commit of understudy salvage apply: finish that (understudy salvage apply --finish --disk IMAGE)"

// magics are what other things than an ext file system begin with, for people: the
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

// fits checks one disk.
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
	case journal && fs.Super.JournalInode == 0:
		return fmt.Errorf("disk %s: %s has its journal on another device, which cannot be handed over with it: make it internal (tune2fs -O ^has_journal, then tune2fs -j)", d.Name, d.Image)
	}
	return nil
}

// featuresOf are those of XFS or btrfs on a disk, as its type says, if a takeover can bring
// it over.
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

// makeOptions are the options of mkfs that make a file system like that of a disk, and those for what
// it does not have, as far as mkfs knows them.
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

// contentOf says what a disk has in the place of a file system of a type. What it has may be somebody's
// only copy, though we do not know it.
func contentOf(on io.ReaderAt, wanted pair.FSType) string {
	return cmp.Or(markOf(on), fmt.Sprintf("no file system that we know (blkid may): make one if nothing on it is needed (mkfs.%s)", wanted))
}

// markOf says what a disk begins with, and what to do then; empty: nothing of magics.
func markOf(on io.ReaderAt) string {
	for _, m := range magics {
		b := make([]byte, len(m.magic))
		if _, err := on.ReadAt(b, int64(m.off)); err == nil && bytes.Equal(b, []byte(m.magic)) {
			return m.what
		}
	}
	return ""
}

// missingRoom is how many bytes of a sparse image the file system under it could not
// hold now.
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

// freeUnder is how many bytes the file system under an image has free.
func freeUnder(h *fence.Hold) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(h.Fd()), &fs); err != nil {
		return 0, fmt.Errorf("measure the file system of %s: %w", h.Name(), err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}
