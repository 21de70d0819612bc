package morgue

import (
	"errors"
	"io"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
)

// Fits returns why a takeover cannot bring over the file system on a disk, as its superblock says. The error says what the
// disk has.
func Fits(disk io.ReaderAt) error {
	fs, err := ext4.Open(disk)
	switch {
	case errors.Is(err, ext4.ErrNotExt):
		f, err := salvage.FeaturesOf(disk)
		if err == nil && f.Lacks != "" {
			return errors.New(f.Lacks)
		}
		return err
	case err != nil:
		return err
	}
	return FitsExt(&fs.Super)
}

// FitsExt is Fits for a file system of the ext family, which was opened.
func FitsExt(s *ext4.Super) error {
	if s.Compat&ext4.CompatHasJournal != 0 && s.JournalInode == 0 {
		return errors.New("has its journal on another device, which cannot be handed over with it: make it internal (tune2fs -O ^has_journal, then tune2fs -j)")
	}
	return nil
}

// Reads returns why what is unsaved on file systems of a type, such as xfs, cannot be read from this kernel's memory.
func (m *Morgue) Reads(fsType string) error {
	k, err := m.known()
	if err != nil {
		return err
	}
	c, err := pagecache.Open(k)
	if err != nil {
		return err
	}
	return c.Reads(fsType)
}
