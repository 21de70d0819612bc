//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// worker changes a file system at random. It uses few names, so that most of its
// operations hit something that exists, and little space.
type worker struct {
	root   string
	fsyncs bool
	random *rand.Rand
	open   []*os.File // deleted but held open: orphans
	steps  atomic.Int64
}

const (
	names  = 40
	orphan = 6 // deleted files held open
)

// work goes on until an operation fails that should not.
func (w *worker) work() error {
	for {
		err := w.step()
		// Errors that a random operation may well get.
		for _, fine := range []error{unix.ENOENT, unix.EEXIST, unix.ENOTEMPTY, unix.EISDIR, unix.ENOTDIR, unix.ENOSPC, unix.EINVAL, unix.ELOOP, unix.EOPNOTSUPP, unix.ENODATA, unix.ENOTSUP} {
			if errors.Is(err, fine) {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.root, err)
		}
		w.steps.Add(1)
		if w.random.IntN(20) == 0 {
			time.Sleep(time.Duration(w.random.IntN(5)) * time.Millisecond)
		}
	}
}

func (w *worker) name() string { return fmt.Sprintf("%s/f%d", w.root, w.random.IntN(names)) }
func (w *worker) dir() string  { return fmt.Sprintf("%s/d%d", w.root, w.random.IntN(4)) }

// step does one operation.
func (w *worker) step() error {
	switch n := w.random.IntN(100); {
	case n < 30:
		return w.write()
	case n < 36:
		return os.Rename(w.name(), w.name())
	case n < 44:
		return os.Remove(w.name())
	case n < 48:
		return os.Truncate(w.name(), w.random.Int64N(300_000))
	case n < 52:
		return os.Link(w.name(), w.name())
	case n < 56:
		return os.Symlink("a target that is longer than the sixty bytes that an inode has for short ones", w.name())
	case n < 62:
		return w.crowd()
	case n < 66:
		return os.RemoveAll(w.dir())
	case n < 72:
		value := bytes.Repeat([]byte{byte(n)}, 1+w.random.IntN(900))
		return unix.Setxattr(w.name(), fmt.Sprint("user.x", w.random.IntN(5)), value, 0)
	case n < 75:
		return unix.Removexattr(w.name(), fmt.Sprint("user.x", w.random.IntN(5)))
	case n < 80:
		return w.unlinkOpen()
	case n < 84:
		return w.punch()
	case n < 88:
		return os.Chmod(w.name(), os.FileMode(w.random.IntN(0o777)))
	case n < 90 && !w.fsyncs:
		return w.sync()
	case w.fsyncs:
		return w.fsync()
	}
	return nil
}

// write writes somewhere into a file. Some pieces begin with the journal's
// magic, at the start of blocks.
func (w *worker) write() error {
	f, err := os.OpenFile(w.name(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	piece := make([]byte, 1+w.random.IntN(40_000))
	for i := range piece {
		piece[i] = byte(w.random.Uint32())
	}
	for at := 0; at+4 <= len(piece); at += 1024 {
		if w.random.IntN(3) == 0 {
			copy(piece[at:], []byte{0xc0, 0x3b, 0x39, 0x98})
		}
	}
	_, err = f.WriteAt(piece, w.random.Int64N(64)*4096)
	return err
}

// crowd makes a directory grow by many names.
func (w *worker) crowd() error {
	dir := w.dir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	first := w.random.IntN(1000)
	for i := range 60 {
		name := fmt.Sprintf("%s/a-name-that-fills-the-directory-soon-%d", dir, first+i)
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// unlinkOpen deletes a file that stays open.
func (w *worker) unlinkOpen() error {
	f, err := os.OpenFile(w.name(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	w.open = append(w.open, f)
	if len(w.open) > orphan {
		w.open[0].Close()
		w.open = w.open[1:]
	}
	return os.Remove(f.Name())
}

// punch makes a hole, so that extents are split and indirect blocks freed.
func (w *worker) punch() error {
	f, err := os.OpenFile(w.name(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, w.random.Int64N(64)*4096, 4096*(1+w.random.Int64N(8)))
}

// sync commits a transaction.
func (w *worker) sync() error {
	f, err := os.Open(w.root)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// fsync makes one file durable.
func (w *worker) fsync() error {
	f, err := os.OpenFile(w.name(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("fsync"); err != nil {
		return err
	}
	return f.Sync()
}
