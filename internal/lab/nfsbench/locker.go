package nfsbench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lineBytes is the size of a line that is appended under a lock.
const lineBytes = 32

// Lines are what one of several writers appended to a file, each under a lock.
type Lines struct {
	Path   string       `json:"path"`
	Writer string       `json:"writer"` // a letter
	Acked  int          `json:"acked"`  // numbers of lines begin at zero
	Unsure map[int]bool `json:"unsure"` // failed, or under way
}

func line(writer string, i int) []byte { return fmt.Appendf(nil, "%s %029d\n", writer, i) }

// work appends until the context ends.
func (l *Lines) work(ctx context.Context, m *Moments) {
	l.Unsure = make(map[int]bool)
	for ; ctx.Err() == nil; l.Acked++ {
		l.Unsure[l.Acked] = true
		if err := m.do("append under a lock", l.Path, func() error { return l.append(l.Acked) }); err == nil {
			delete(l.Unsure, l.Acked)
		}
		select {
		case <-time.After(20 * time.Millisecond): // so that the other writer gets the lock
		case <-ctx.Done():
		}
	}
}

// append takes the lock, appends a line at the end of the file, syncs it to the server,
// and lets the lock go.
func (l *Lines) append(i int) error {
	f, err := os.OpenFile(l.Path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close() // which lets the lock go, too
	if err := flock(f, unix.F_OFD_SETLKW, unix.F_WRLCK); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(line(l.Writer, i), end); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return flock(f, unix.F_OFD_SETLK, unix.F_UNLCK)
}

func flock(f *os.File, how int, kind int16) error {
	for {
		err := unix.FcntlFlock(f.Fd(), how, &unix.Flock_t{Type: kind})
		if err != unix.EINTR { // the runtime's own signals
			return err
		}
	}
}

// checkLines checks that a file has what its writers appended: all of it, each line once
// and whole, and the lines of one writer in order.
func checkLines(content []byte, writers []*Lines) (lost int64, findings []string) {
	next := make(map[string]int)
	seen := make(map[string]bool)
	for at := 0; at < len(content); at += lineBytes {
		b := content[at:min(at+lineBytes, len(content))]
		var writer string
		var i int
		if _, err := fmt.Sscanf(string(b), "%1s %d\n", &writer, &i); err != nil || !bytes.Equal(b, line(writer, i)) {
			findings = append(findings, fmt.Sprintf("at byte %d is no line: %q", at, b))
			continue
		}
		if i < next[writer] || seen[string(b)] {
			findings = append(findings, fmt.Sprintf("at byte %d is line %s %d, once more or late", at, writer, i))
		}
		next[writer] = i + 1
		seen[string(b)] = true
	}
	for _, l := range writers {
		for i := range l.Acked {
			if !l.Unsure[i] && !seen[string(line(l.Writer, i))] {
				lost += lineBytes
				findings = append(findings, fmt.Sprintf("line %s %d is gone", l.Writer, i))
			}
		}
	}
	return lost, findings
}
