package journal

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// giveUpMMP has the disk say that nobody has the file system mounted, as the dead kernel would have
// said when it unmounted it, so that the next mount need not wait for that kernel's sign of
// life. Only where the last who signed is that kernel, by its memory: if it is another machine, or
// e2fsck there, the mount must find out.
func (f *finisher) giveUpMMP() error {
	fs, err := ext4.Open(f.disk)
	if err != nil {
		return err
	}
	at, ok, err := fs.Super.MMPLocation()
	if err == nil && !ok {
		return nil
	}
	var b []byte
	if err == nil {
		b, err = f.signature(fs, at)
	}
	if err != nil {
		f.report.Shared = err.Error()
		return nil
	}
	if b == nil {
		return nil
	}
	return f.step("mmp", func() error {
		if b, err = fs.Super.SetMMPClean(b); err != nil {
			return err
		}
		if _, err := f.disk.WriteAt(b, int64(at)*int64(len(b))); err != nil {
			return fmt.Errorf("write block %d: %w", at, err)
		}
		return f.disk.Sync()
	})
}

// signature is the block of mmp on the disk, if the dead kernel is who signed it; nil if nobody
// has, as an earlier attempt leaves it.
func (f *finisher) signature(fs *ext4.FS, at addr.Block) ([]byte, error) {
	b, err := fs.Block(at)
	if err != nil {
		return nil, err
	}
	disk, err := fs.Super.ParseMMP(b, true)
	if err != nil {
		return nil, err
	}
	if disk.Sequence == ext4.MMPClean {
		return nil, nil
	}
	return b, f.signed(fs, at, disk)
}

// signed says why it is not proven that the dead kernel is who wrote the block of mmp on the disk.
func (f *finisher) signed(fs *ext4.FS, at addr.Block, disk ext4.MMP) error {
	size := int(fs.Super.BlockSize)
	if !f.dev.Caches(at, size) { // else it would be read from the disk
		return fmt.Errorf("memory does not have block %d, the MMP block", at)
	}
	b, err := f.dev.Meta(at, size)
	if err != nil {
		return err
	}
	memory, err := fs.Super.ParseMMP(b, false)
	if err != nil {
		return fmt.Errorf("in memory: %w", err)
	}
	if !memory.Wrote(disk) {
		return fmt.Errorf("the MMP block was last written by %q, with sequence %d, and not by the dead kernel %q, which was at %d", disk.Node, disk.Sequence, memory.Node, memory.Sequence)
	}
	return nil
}
