package foreign

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
)

// memory finds where the machine's memory is in the process.
func (m *Machine) memory() (region, error) {
	f, err := os.Open(m.proc("maps"))
	if err != nil {
		return region{}, fmt.Errorf("find memory of process %d: %w", m.PID, err)
	}
	defer f.Close()
	all, err := parseMaps(f)
	if err != nil {
		return region{}, err
	}
	given, err := memoryOf(m.args)
	if err != nil {
		return region{}, err
	}
	r, err := machineMemory(all, given)
	if err != nil {
		return r, hint.New(fmt.Sprintf("find memory of process %d", m.PID), err,
			"Have QEMU dump it (dump-guest-memory, or virsh dump --memory-only), and use that file.")
	}
	return r, nil
}

// chunk is the size of one read, in bytes.
const chunk = 1 << 20

// Save writes the machine's memory to a new file, durably, in the form of a RAM file of QEMU: all
// bytes in order, pages of zeros as holes. The process must be frozen. A byte that cannot be read is
// an error. On an error, or if ctx ends, the file is removed.
func (m *Machine) Save(ctx context.Context, path string) (err error) {
	// An existing file may be the only copy of another machine's memory: it is not overwritten.
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return hint.New("save memory to "+path, err, "It may be all that is left of another machine: move it away, or name another file.")
	}
	if err != nil {
		return fmt.Errorf("save memory: %w", err)
	}
	if err = errors.Join(m.SaveTo(ctx, to), to.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// SaveTo is Save to an empty file that is open for writing. The file stays, whatever happens.
func (m *Machine) SaveTo(ctx context.Context, to *os.File) error {
	r, err := m.memory()
	if err != nil {
		return err
	}
	if err := m.room(to.Name(), r); err != nil {
		return err
	}
	from, err := os.Open(m.proc("mem"))
	if err != nil {
		return hint.New(fmt.Sprintf("read memory of process %d", m.PID), err, "This needs the rights of root, and kernel.yama.ptrace_scope below 3.")
	}
	defer from.Close()
	err = m.copy(ctx, from, to, r)
	if err == nil {
		err = errors.Join(to.Truncate(r.size()), to.Sync())
	}
	if err != nil {
		return fmt.Errorf("save memory of process %d: %w", m.PID, err)
	}
	return nil
}

func (m *Machine) copy(ctx context.Context, from io.ReaderAt, to io.WriterAt, r region) error {
	pages, err := m.pagemap(r)
	if err != nil {
		return err
	}
	defer pages.close()
	buf := make([]byte, chunk)
	for off := int64(0); off < r.size(); off += chunk {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := buf[:min(chunk, r.size()-off)]
		at := r.start + uint64(off)
		if used, err := pages.used(at, len(b)); err != nil {
			return err
		} else if !used {
			continue
		}
		if _, err := from.ReadAt(b, int64(at)); err != nil {
			return fmt.Errorf("%d bytes at %#x: %w", len(b), at, err)
		}
		if err := writeSparse(to, b, off); err != nil {
			return err
		}
	}
	return nil
}

var zeros [4096]byte

// writeSparse writes all pages that are not zeros.
func writeSparse(to io.WriterAt, b []byte, off int64) error {
	for len(b) > 0 {
		n := 0
		for n < len(b) && !bytes.Equal(b[n:min(n+len(zeros), len(b))], zeros[:min(len(zeros), len(b)-n)]) {
			n = min(n+len(zeros), len(b))
		}
		if n > 0 {
			if _, err := to.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		n = min(n+len(zeros), len(b)) // the page of zeros, if there is one
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// pagemap tells which pages of private memory were never touched: they are zeros, and are not
// read. Memory with a file behind it may have content that this process has never touched.
type pagemap struct {
	file *os.File // nil if every page is read
	page int      // bytes
}

func (m *Machine) pagemap(r region) (*pagemap, error) {
	p := &pagemap{page: os.Getpagesize()}
	if r.file != "" || r.shared {
		return p, nil
	}
	var err error
	if p.file, err = os.Open(m.proc("pagemap")); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *pagemap) close() {
	if p.file != nil {
		p.file.Close()
	}
}

// pagemapUsed are the bits of a pagemap entry which say that the page is present or swapped out
// (Documentation/admin-guide/mm/pagemap.rst).
const pagemapUsed = 1<<63 | 1<<62

// used reports whether any of the bytes at an address was ever touched.
func (p *pagemap) used(at uint64, n int) (bool, error) {
	if p.file == nil {
		return true, nil
	}
	entries := make([]byte, (n+p.page-1)/p.page*8)
	if _, err := p.file.ReadAt(entries, int64(at/uint64(p.page))*8); err != nil {
		return false, fmt.Errorf("read pagemap: %w", err)
	}
	for ; len(entries) > 0; entries = entries[8:] {
		if binary.NativeEndian.Uint64(entries)&pagemapUsed != 0 {
			return true, nil
		}
	}
	return false, nil
}

// room checks that there is room on the disk for all memory that was ever touched.
func (m *Machine) room(path string, r region) error {
	pages, err := m.pagemap(r)
	if err != nil {
		return err
	}
	defer pages.close()
	need := int64(0)
	for off := int64(0); off < r.size(); off += chunk {
		n := min(chunk, r.size()-off)
		used, err := pages.used(r.start+uint64(off), int(n))
		if err != nil {
			return err
		}
		if used {
			need += n
		}
	}
	var place unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &place); err != nil {
		return fmt.Errorf("look for free space on disk: %w", err)
	}
	if free := int64(place.Bavail) * place.Bsize; need > free {
		return hint.New("save memory to "+path, fmt.Errorf("it may take %d bytes, and %d are free there", need, free), "Name a file elsewhere. Nothing was touched.")
	}
	return nil
}
