package nfsbench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Appended is a file that grew record by record, and how many records were acknowledged.
// Only one more, the last, may be in it without that.
type Appended struct {
	Path    string `json:"path"`
	Seed    uint64 `json:"seed"`
	Records int    `json:"records"`
	Wrong   int    `json:"wrong"` // records that were not read as they had been written
}

// file is what an appender writes to.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// retryPause is how long a stream waits after an error.
const retryPause = 50 * time.Millisecond

// appendRecords appends to a file and reads it until the context ends. Each record is
// acknowledged as durable before the next; each read is of any record so far.
func appendRecords(ctx context.Context, m *Moments, a *Appended, open func() (file, error)) {
	var f file
	defer func() {
		if f != nil {
			_ = f.Close() // every write has reported its error
		}
	}()
	out, in := make([]byte, RecordBytes), make([]byte, RecordBytes)
	for ctx.Err() == nil {
		if f == nil {
			err := m.do("open", a.Path, func() (err error) {
				f, err = open()
				return err
			})
			if err != nil {
				f = nil
				pause(ctx)
				continue
			}
		}
		record(out, a.Seed, a.Records)
		if err := step(m, "write", a.Path, a.Records, out, f.WriteAt); err != nil {
			if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.EIO) {
				_ = f.Close() // it is of no use any more
				f = nil
			}
			pause(ctx)
			continue
		}
		a.Records++
		rest(ctx)
		i := int(mix(uint64(a.Records)) % uint64(a.Records))
		record(out, a.Seed, i)
		if err := step(m, "read", a.Path, i, in, f.ReadAt); err == nil && !bytes.Equal(in, out) {
			a.Wrong++
		}
		rest(ctx)
	}
}

// restTime is the pause between two operations of a stream. All that is measured is
// longer, and a machine on which all streams run at once has something else to do, too.
const restTime = 5 * time.Millisecond

func rest(ctx context.Context) {
	select {
	case <-time.After(restTime):
	case <-ctx.Done():
	}
}

func step(m *Moments, op, path string, i int, b []byte, f func([]byte, int64) (int, error)) error {
	return m.do(op, path, func() error {
		n, err := f(b, int64(i)*RecordBytes)
		if err == nil && n < len(b) {
			err = fmt.Errorf("%d of %d bytes", n, len(b))
		}
		return err
	})
}

func pause(ctx context.Context) {
	select {
	case <-time.After(retryPause):
	case <-ctx.Done():
	}
}

// openSynced returns a function that opens a file of the kernel's client. Each write goes
// to the server and, if direct, each read does as well, past the cache.
func openSynced(path string, direct bool) func() (file, error) {
	flags := os.O_RDWR | os.O_CREATE | os.O_SYNC
	if direct {
		flags |= unix.O_DIRECT
	}
	return func() (file, error) { return os.OpenFile(path, flags, 0o644) }
}

// check reads what should be in the file and returns how many bytes of it are not. size
// is the file's.
func (a *Appended) check(read func(at int64, n int) ([]byte, error), size int64) (lost int64, err error) {
	want := make([]byte, RecordBytes)
	const many = 32
	for i := 0; i < a.Records; i += many {
		n := min(many, a.Records-i) * RecordBytes
		var got []byte
		if at := int64(i) * RecordBytes; at < size {
			if got, err = read(at, n); err != nil {
				return lost, err
			}
		}
		for ; n > 0; n -= RecordBytes {
			record(want, a.Seed, i+(min(many, a.Records-i)*RecordBytes-n)/RecordBytes)
			part := got[:min(len(got), RecordBytes)]
			got = got[len(part):]
			if !bytes.Equal(part, want) {
				lost += RecordBytes
			}
		}
	}
	return lost, nil
}
