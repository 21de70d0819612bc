package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	fileName = "events.jsonl"
	oldName  = "events.old.jsonl"
	// maxBytes is how large the file may grow, in bytes, before it replaces the old
	// one: some ten thousand events, of some hundred bytes.
	maxBytes = 4 << 20
	// maxLine is how long one event may be, in bytes: a takeover that refused thousands of
	// files has a long report.
	maxLine = 1 << 20
)

// Log is the file of a pair's events, open for adding events.
type Log struct {
	dir    string
	file   *os.File
	size   int64
	failed func(error)
	queue  *queue
}

// Open opens the log in a directory, which it makes if there is none. failed is called for each
// event that could not be written, on a goroutine of the log.
func Open(dir string, failed func(error)) (*Log, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("open log of events: %w", err)
	}
	l := &Log{dir: dir, failed: failed}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open log of events: %w", err)
	}
	l.queue = newQueue(l.handle)
	return l, nil
}

// open opens the file. If the last line was cut off when the machine ended, it is ended now,
// so that the next event has its own line.
func (l *Log) open() error {
	f, err := os.OpenFile(filepath.Join(l.dir, fileName), os.O_CREATE|os.O_RDWR|os.O_APPEND|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() > 0 {
		last := make([]byte, 1)
		if _, err = f.ReadAt(last, st.Size()-1); err == nil && last[0] != '\n' {
			_, err = f.Write([]byte{'\n'})
		}
	}
	if err == nil {
		st, err = f.Stat()
	}
	if err == nil {
		err = syncDir(l.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Add hands over an event to be written. It does not wait until that is done.
func (l *Log) Add(e Event) { l.queue.add(e) }

// closeLimit is how long the end of a supervisor waits for a disk to take its last events.
const closeLimit = 5 * time.Second

// Close writes what was added, and closes the log.
func (l *Log) Close() error {
	if !l.queue.close(closeLimit) {
		return fmt.Errorf("close log of events: %s takes longer than %v", l.dir, closeLimit)
	}
	return l.file.Close()
}

func (l *Log) handle(e Event) {
	if err := l.write(e); err != nil {
		l.failed(fmt.Errorf("write event %s: %w", e.Kind, err))
	}
}

// write makes an event durable.
func (l *Log) write(e Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(b) >= maxLine { // its report makes it so long; understudy status has the report
		e.Takeover = nil
		if b, err = json.Marshal(e); err != nil || len(b) >= maxLine {
			return errors.Join(fmt.Errorf("it is too long: %d bytes", len(b)), err)
		}
	}
	b = append(b, '\n')
	if l.size > 0 && l.size+int64(len(b)) > maxBytes {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(b)
	l.size += int64(n)
	if err != nil {
		return err
	}
	return unix.Fdatasync(int(l.file.Fd()))
}

// rotate makes the file the old one, and opens a new one. If the new one cannot be made, events
// still go to the old one.
func (l *Log) rotate() error {
	old := l.file
	if err := os.Rename(old.Name(), filepath.Join(l.dir, oldName)); err != nil {
		return err
	}
	if err := l.open(); err != nil {
		return err
	}
	return old.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
