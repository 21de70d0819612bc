package jbd2

import (
	"bytes"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// maxPiece bounds what is written at once, in bytes.
const maxPiece = 1 << 20

// writer writes blocks to the disk, and consecutive blocks at once.
type writer struct {
	l    *Log
	at   addr.Block // where wait goes
	wait []byte
}

// block queues a block of the disk.
func (w *writer) block(at addr.Block, b []byte) error {
	size := int(w.l.Super.BlockSize)
	if len(w.wait) > 0 && (at != w.at+addr.Block(len(w.wait)/size) || len(w.wait) >= maxPiece) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(w.wait) == 0 {
		w.at = at
	}
	if cap(w.wait)-len(w.wait) < len(b) {
		w.wait = slices.Grow(w.wait, max(len(b), len(w.wait))) // append alone would copy it more often
	}
	w.wait = append(w.wait, b...)
	return nil
}

// journal queues a block of the journal.
func (w *writer) journal(p Pos, b []byte) error {
	at, err := w.l.Where(p)
	if err != nil {
		return err
	}
	return w.block(at, b)
}

// flush writes what is queued.
func (w *writer) flush() error {
	if len(w.wait) == 0 {
		return nil
	}
	if _, err := w.l.disk.WriteAt(w.wait, int64(w.at)*int64(w.l.Super.BlockSize)); err != nil {
		return fmt.Errorf("write block %d: %w", w.at, err)
	}
	w.wait = w.wait[:0]
	return nil
}

// sync writes what is queued, and makes everything that was written durable.
func (w *writer) sync() error {
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.l.disk.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// super queues the journal's superblock.
func (w *writer) super(s *Super) error {
	b, err := (&reader{l: w.l}).block(0)
	if err != nil {
		return err
	}
	s.setSuper(b)
	return w.journal(0, b)
}

// inUse queues the file system's superblock, saying whether the journal is in use. If
// it is not to be in use, and the superblock says so already, nothing is written.
func (w *writer) inUse(inUse bool) error {
	at, offset := w.l.FS.Super.Location()
	b, err := w.l.FS.Block(at)
	if err != nil {
		return err
	}
	old := b[offset : offset+ext4.SuperSize]
	if err := ext4.CheckSuper(old); err != nil {
		return err
	}
	super, err := ext4.SetRecover(old, inUse)
	if err != nil || !inUse && bytes.Equal(super, old) {
		return err
	}
	copy(old, super)
	return w.block(at, b)
}

// restore queues a block from the log for its home. The superblock keeps what the
// disk says about errors.
func (w *writer) restore(in *reader, b LoggedBlock) error {
	data, err := in.home(b)
	if err != nil {
		return err
	}
	super, offset := w.l.FS.Super.Location()
	if b.Home == super {
		disk, err := w.l.FS.Block(super)
		if err != nil {
			return err
		}
		merged, err := ext4.Replayed(data[offset:], disk[offset:])
		if err != nil {
			return err
		}
		copy(data[offset:], merged)
	}
	return w.block(b.Home, data)
}

// reload reads the superblocks again after they were written.
func (l *Log) reload(s Super) error {
	fs, err := ext4.Open(l.disk)
	if err == nil {
		l.FS, l.Super = fs, s
	}
	return err
}
