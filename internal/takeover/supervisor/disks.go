package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/pair"
)

// Inspect looks at the disks of a pair that is not up as Start would, and lets them go
// again. log is told what is not wrong, but worth knowing.
func Inspect(p *pair.Pair, log io.Writer) error {
	s := &Supervisor{Pair: p, options: Options{Log: log}, holds: make(map[string]*fence.Hold)}
	err := s.hold(fence.Keep)
	if err == nil {
		err = s.checkDisks()
	}
	return errors.Join(err, s.release())
}

// checkDisks checks that the file systems on the shared disks are such as a takeover
// brings over, as their own superblocks say.
func (s *Supervisor) checkDisks() error {
	for _, d := range s.Pair.Disks {
		h := s.holds[d.Image]
		if err := fits(d, h); err != nil {
			return err
		}
		if lacks, err := missingRoom(h); err != nil {
			return err
		} else if lacks > 0 {
			s.log("disk %s: its image is sparse, and the file system under it lacks %d MiB of what it may grow to: the pair stands still when that is full", d.Name, lacks>>20)
		}
	}
	return nil
}

// magics are what other things than an ext file system begin with, for people: the
// offset, the bytes, and what to do.
var magics = []struct {
	off         int
	magic, what string
}{
	{512, "EFI PART", "a partition table: name the partition's own device, or an image of the file system alone"},
	{0, "XFSB", "XFS, which a pair cannot take over yet"},
	{65536 + 64, "_BHRfS_M", "btrfs, which a pair cannot take over yet"},
	{0, "LUKS\xba\xbe", "LUKS, which a pair cannot take over yet"},
	{512, "LABELONE", "a physical volume of LVM, which a pair cannot take over yet"},
	{510, "\x55\xaa", "a partition table: name the partition's own device, or an image of the file system alone"},
}

// fits checks one disk.
func fits(d pair.Disk, disk io.ReaderAt) error {
	fs, err := ext4.Open(disk)
	if errors.Is(err, ext4.ErrNotExt) {
		return fmt.Errorf("disk %s: %s has %s", d.Name, d.Image, contentOf(disk))
	}
	if err != nil {
		return fmt.Errorf("disk %s: %s: %w", d.Name, d.Image, err)
	}
	switch {
	case fs.Super.Incompat&ext4.IncompatMMP != 0:
		return fmt.Errorf("disk %s: %s has the feature mmp, for which a takeover's mount would wait for most of a minute: take it off (tune2fs -O ^mmp), the pair itself keeps others from the disk", d.Name, d.Image)
	case d.Type == pair.Ext3 && fs.Super.Incompat&ext4.IncompatExtents != 0:
		return fmt.Errorf("disk %s: %s has extents, which ext3 does not know: say type: ext4", d.Name, d.Image)
	}
	return nil
}

// contentOf says what a disk has that is no ext file system.
func contentOf(disk io.ReaderAt) string {
	for _, m := range magics {
		b := make([]byte, len(m.magic))
		if _, err := disk.ReadAt(b, int64(m.off)); err == nil && bytes.Equal(b, []byte(m.magic)) {
			return m.what
		}
	}
	return "no file system that we know: make one (mkfs.ext4)"
}

// missingRoom is how many bytes of a sparse image the file system under it could not
// hold now.
func missingRoom(h *fence.Hold) (int64, error) {
	if h.Device {
		return 0, nil
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(h.Fd()), &st), unix.Fstatfs(int(h.Fd()), &fs)); err != nil {
		return 0, fmt.Errorf("measure %s: %w", h.Name(), err)
	}
	holes := st.Size - st.Blocks*512
	return max(0, holes-int64(fs.Bavail)*fs.Bsize), nil
}
