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

// BadLine is a line of a log that is no event: the end of the machine cut it off, or
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
		for _, name := range []string{oldName, fileName} {
			f, err := os.Open(filepath.Join(dir, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
			s := &scanner{name: f.Name(), r: bufio.NewReader(f)}
			ok := s.scan(yield) && s.rest(yield)
			f.Close()
			if !ok {
				return
			}
		}
	}
}

// Follow reads what is added to a log from now on, looking for it so often, until ctx ends.
func Follow(ctx context.Context, dir string, every time.Duration) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		path := filepath.Join(dir, fileName)
		f, err := os.Open(path)
		if err == nil {
			_, err = f.Seek(0, io.SeekEnd)
		}
		if err != nil {
			yield(Event{}, err)
			return
		}
		s := &scanner{name: path, r: bufio.NewReader(f)}
		tick := time.NewTicker(every)
		defer tick.Stop()
		defer func() { f.Close() }()
		for s.scan(yield) {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if next := successor(f, path); next != nil {
				if !s.scan(yield) || !s.rest(yield) { // what came before it was replaced
					next.Close()
					return
				}
				f.Close()
				f, s = next, &scanner{name: path, r: bufio.NewReader(next)}
			}
		}
	}
}

// successor is the file that has the place of f now; nil, if that is f, or none.
func successor(f *os.File, path string) *os.File {
	next, err := os.Open(path)
	if err != nil {
		return nil
	}
	was, err1 := f.Stat()
	is, err2 := next.Stat()
	if err1 != nil || err2 != nil || os.SameFile(was, is) {
		next.Close()
		return nil
	}
	return next
}

// scanner reads events, a line each. Of a line it keeps at most maxLine bytes.
type scanner struct {
	name string
	r    *bufio.Reader
	line []byte // of a line whose end is not there yet
	n    int
	long bool
}

// scan yields the lines that are there. It is false when nothing more is wanted, or can be
// read.
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
