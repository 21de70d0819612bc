package nfslab

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/wire"
)

// Verbs of the client's agent.
const (
	VerbMount   = "nfslab.mount"   // MountRequest
	VerbUnmount = "nfslab.unmount" // MountRequest, of which only the target is used
	VerbWrite   = "nfslab.write"   // WriteRequest to WriteResult: until VerbStop, if it does not say how many files
	VerbWritten = "nfslab.written" // to a map of the files written so far, by directory
	VerbStop    = "nfslab.stop"    // end all streams, each after its file
	VerbVerify  = "nfslab.verify"  // WriteRequest to WriteResult
	VerbLock    = "nfslab.lock"    // LockRequest: take a lock and keep it
	VerbUnlock  = "nfslab.unlock"  // LockRequest: write under it and let it go
)

// MountRequest is a call of mount(2).
type MountRequest struct {
	Source  string `json:"source"`
	Target  string `json:"target"`
	Type    string `json:"type"`
	Options string `json:"options"`
}

// WriteRequest asks for a stream of files in a directory, one after the other, whose
// content follows from the seed.
type WriteRequest struct {
	Dir   string `json:"dir"`
	Seed  uint64 `json:"seed"`
	Size  int    `json:"size"`            // of a file, bytes
	Files int    `json:"files,omitempty"` // 0 means until VerbStop
}

// WriteResult tells how writing, or verifying, went.
type WriteResult struct {
	Files  int           `json:"files"`
	Worst  time.Duration `json:"worst"`  // the longest time that one file took
	At     time.Duration `json:"at"`     // when that file was begun
	Errors []string      `json:"errors"` // the first 20
}

// LockRequest names a file.
type LockRequest struct {
	Path string `json:"path"`
}

// Verbs are what a client's agent answers.
func Verbs() map[string]agent.Verb {
	l := &locks{files: make(map[string]*os.File)}
	s := &streams{written: make(map[string]int), stop: make(chan struct{})}
	return map[string]agent.Verb{
		VerbMount: verb(func(_ context.Context, r MountRequest) (any, error) {
			if err := os.MkdirAll(r.Target, 0o755); err != nil {
				return nil, err
			}
			if err := unix.Mount(r.Source, r.Target, r.Type, 0, r.Options); err != nil {
				return nil, fmt.Errorf("mount %s (%s) on %s: %w", r.Source, r.Options, r.Target, err)
			}
			return nil, nil
		}),
		VerbUnmount: verb(func(_ context.Context, r MountRequest) (any, error) { return nil, unix.Unmount(r.Target, 0) }),
		VerbWrite:   verb(func(ctx context.Context, r WriteRequest) (any, error) { return s.run(ctx, r, writeFile), nil }),
		VerbWritten: verb(func(context.Context, struct{}) (any, error) { return s.soFar(), nil }),
		VerbStop: verb(func(context.Context, struct{}) (any, error) {
			s.once.Do(func() { close(s.stop) })
			return nil, nil
		}),
		VerbVerify: verb(func(ctx context.Context, r WriteRequest) (any, error) { return s.run(ctx, r, verifyFile), nil }),
		VerbLock:   verb(l.take),
		VerbUnlock: verb(l.release),
	}
}

func verb[In any](f func(context.Context, In) (any, error)) agent.Verb {
	return func(ctx context.Context, _ *wire.Conn, body json.RawMessage) (any, error) {
		var in In
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, err
		}
		return f(ctx, in)
	}
}

// streams are the streams under way, and those that have ended.
type streams struct {
	mu      sync.Mutex
	written map[string]int // files, by directory
	once    sync.Once
	stop    chan struct{}
}

func (s *streams) soFar() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.written)
}

func (s *streams) stopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// run calls do for one file after the other.
func (s *streams) run(ctx context.Context, r WriteRequest, do func(path string, content []byte) error) WriteResult {
	result := WriteResult{Errors: []string{}}
	began := time.Now()
	for i := 0; ctx.Err() == nil && (r.Files > 0 && i < r.Files || r.Files == 0 && !s.stopped()); i++ {
		content := make([]byte, r.Size)
		rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%d/%d", r.Seed, i))).Read(content)
		start := time.Now()
		if err := do(filepath.Join(r.Dir, fmt.Sprintf("f%06d", i)), content); err != nil && len(result.Errors) < 20 {
			result.Errors = append(result.Errors, err.Error())
		}
		if took := time.Since(start); took > result.Worst {
			result.Worst, result.At = took, start.Sub(began)
		}
		result.Files++
		s.mu.Lock()
		s.written[r.Dir] = result.Files
		s.mu.Unlock()
	}
	return result
}

func writeFile(path string, content []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close()) // the data is sent at the close
}

func verifyFile(path string, content []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	got, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if sha256.Sum256(got) != sha256.Sum256(content) {
		return fmt.Errorf("%s: its %d bytes are not the %d that were written", path, len(got), len(content))
	}
	return nil
}

// locks are files that are locked, each by its own descriptor.
type locks struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func (l *locks) take(_ context.Context, r LockRequest) (any, error) {
	f, err := os.OpenFile(r.Path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", r.Path, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.files[r.Path] = f
	return nil, nil
}

// release fails if the lock was lost: a client whose lock is gone may not write through
// that descriptor any more.
func (l *locks) release(_ context.Context, r LockRequest) (any, error) {
	l.mu.Lock()
	f := l.files[r.Path]
	delete(l.files, r.Path)
	l.mu.Unlock()
	if f == nil {
		return nil, fmt.Errorf("%s is not locked", r.Path)
	}
	_, err := f.WriteAt([]byte("still mine"), 0)
	return nil, errors.Join(err, f.Sync(), unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}), f.Close())
}
