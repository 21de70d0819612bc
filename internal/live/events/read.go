package events

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"
)

// BadLine is a line of a log that is not an event: it was cut off when the machine ended, or
// somebody edited it.
type BadLine struct {
	File string
	Line int // of what was read of the file, 1-based
	Err  error
}

func (b *BadLine) Error() string { return fmt.Sprintf("%s:%d: no event: %v", b.File, b.Line, b.Err) }

func (b *BadLine) Unwrap() error { return b.Err }

var errLong = fmt.Errorf("longer than %d bytes", maxLine)

// Read reads a log, the oldest event first. A *BadLine does not end it; other errors do.
func Read(dir string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r := NewReader(dir)
		defer r.Close()
		if r.read(yield) && r.s != nil {
			r.s.rest(yield)
		}
	}
}

// Reader reads a log, and then what is added to it.
type Reader struct {
	dir string
	f   *os.File // nil while the log has no file
	s   *scanner
}

// NewReader makes a reader of the log in a directory. It must be closed.
func NewReader(dir string) *Reader { return &Reader{dir: dir} }

// Close closes the file that is being read.
func (r *Reader) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// Read reads what is there, the oldest event first. A *BadLine does not end it; other errors
// do.
func (r *Reader) Read() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) { r.read(yield) }
}

func (r *Reader) read(yield func(Event, error) bool) bool {
	old, err := os.Open(filepath.Join(r.dir, oldName))
	if err == nil {
		s := newScanner(old)
		ok := s.scan(yield) && s.rest(yield)
		old.Close()
		if !ok {
			return false
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		yield(Event{}, err)
		return false
	}
	if err := r.open(); err != nil {
		yield(Event{}, err)
		return false
	}
	return r.s == nil || r.s.scan(yield)
}

// open opens the file that is written now, if there is one.
func (r *Reader) open() error {
	f, err := os.Open(filepath.Join(r.dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		r.f, r.s = f, newScanner(f)
	}
	return err
}

// Follow reads the events that are added after those that Read has read, until ctx ends. every is
// the time between two looks for new ones.
func (r *Reader) Follow(ctx context.Context, every time.Duration) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for r.s == nil || r.s.scan(yield) {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if r.f != nil && !r.replaced() {
				continue
			}
			if r.f != nil { // what was written before the file was replaced
				if !r.s.scan(yield) || !r.s.rest(yield) {
					return
				}
				r.f.Close()
				r.f, r.s = nil, nil
			}
			if err := r.open(); err != nil {
				yield(Event{}, err)
				return
			}
		}
	}
}

// replaced reports whether another file has taken the place of the one that is read.
func (r *Reader) replaced() bool {
	was, err1 := r.f.Stat()
	is, err2 := os.Stat(r.f.Name())
	return err1 == nil && err2 == nil && !os.SameFile(was, is)
}

// scanner reads events, one per line. It keeps at most maxLine bytes of a line.
type scanner struct {
	name string
	r    *bufio.Reader
	line []byte // the part that is there of a line without an end
	n    int
	long bool
}

func newScanner(f *os.File) *scanner { return &scanner{name: f.Name(), r: bufio.NewReader(f)} }

// scan yields the lines that are there. It returns false when yield wants no more, or nothing
// more can be read.
func (s *scanner) scan(yield func(Event, error) bool) bool {
	for {
		part, err := s.r.ReadSlice('\n')
		if len(s.line)+len(part) > maxLine+1 {
			s.long = true
		} else {
			s.line = append(s.line, part...)
		}
		switch {
		case err == nil:
			if !s.end(yield) {
				return false
			}
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return true
		default:
			yield(Event{}, fmt.Errorf("read %s: %w", s.name, err))
			return false
		}
	}
}

// rest yields a last line that has no end.
func (s *scanner) rest(yield func(Event, error) bool) bool {
	return len(s.line) == 0 && !s.long || s.end(yield)
}

func (s *scanner) end(yield func(Event, error) bool) bool {
	line, long := bytes.TrimSpace(s.line), s.long
	s.line, s.long = nil, false
	s.n++
	var e Event
	var err error
	switch {
	case long:
		err = errLong
	case len(line) == 0:
		return true
	default:
		err = json.Unmarshal(line, &e)
	}
	if err == nil && e.Kind == "" {
		err = errors.New("it has no kind")
	}
	if err != nil {
		return yield(Event{}, &BadLine{s.name, s.n, err})
	}
	return yield(e, nil)
}
