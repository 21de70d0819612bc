package journal

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// giveUpMMP makes the disk say that nobody has the file system mounted, as the dead kernel would have
// done on unmounting it, so that the next mount need not wait for a sign of life of that kernel.
// It does so only if, according to its memory, that kernel was the last to write the MMP block: if it was
// another machine, or e2fsck there, the mount must find out.
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

// signature returns the MMP block on the disk if the dead kernel was the last to write it; nil if it says
// that nobody has the file system mounted, as an earlier attempt leaves it.
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

// signed says why it is not proven that the dead kernel wrote the MMP block that is on the disk.
func (f *finisher) signed(fs *ext4.FS, at addr.Block, disk ext4.MMP) error {
	size := int(fs.Super.BlockSize)
	if !f.dev.Caches(at, size) { // otherwise it would be read from the disk
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
