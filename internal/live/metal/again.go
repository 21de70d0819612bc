package metal

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// An understudy that has taken over is itself protected by another understudy. That one runs in memory
// and on CPUs that were the dead kernel's, and is started from the same files, which lie on a disk that
// was taken over.

// Again is what another understudy is started from. The paths are those of the machine's own kernel.
type Again struct {
	Kernel File   `json:"kernel"`
	Image  File   `json:"image"`
	Append string `json:"append,omitempty"`
}

// File is the path of a file, and the checksum that it had when the understudy was started.
type File struct {
	Path string `json:"path"`
	Sum  string `json:"sha256"`
}

// NewFile returns the File for a path and its content. It fails unless the path lies on a disk of the
// role.
func NewFile(path string, content []byte, role wire.Config) (f File, err error) {
	f.Sum = fmt.Sprintf("%x", sha256.Sum256(content))
	if f.Path, err = filepath.Abs(path); err == nil {
		f.Path, err = filepath.EvalSymlinks(f.Path) // after a takeover the links would lead elsewhere
	}
	if err != nil {
		return f, err
	}
	return f, OnDisk(f.Path, role)
}

// OnDisk returns an error unless a file or directory lies on a disk that is taken over. The path must
// have no symbolic links.
func OnDisk(path string, role wire.Config) error {
	device := func(path string) (uint64, error) {
		var s unix.Stat_t
		err := unix.Stat(path, &s)
		return s.Dev, err
	}
	at, err := device(path)
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if d, ok := diskAt(role.Disks, path); ok {
		for _, p := range d.Points() {
			if mounted, err := device(p.Dir); err == nil && mounted == at && within(path, p.Dir) {
				return nil
			}
		}
	}
	return fmt.Errorf("%s is on no disk that is taken over, and would not be there to start another understudy from", path)
}

// read reads the file below the directory root. It fails if the content has changed.
func (f File) read(root string) ([]byte, error) {
	b, err := os.ReadFile(root + f.Path)
	if err == nil && fmt.Sprintf("%x", sha256.Sum256(b)) != f.Sum {
		err = fmt.Errorf("%s has changed since the understudy was started", f.Path)
	}
	return b, err
}

// Successor returns another understudy that does what this one did. Its files are now below the
// directory root.
func (s *Self) Successor(root string) (*Understudy, error) {
	again := s.Config.Again
	if again == nil {
		return nil, errors.New("this understudy was not told to start another")
	}
	u := &Understudy{Append: again.Append, Config: Config{
		Version: s.Config.Version, Role: s.Config.Role, Drivers: s.Config.Drivers, Limit: s.Config.Limit, CPU: s.Config.CPU, Again: again,
	}}
	var err error
	if u.Kernel, err = again.Kernel.read(root); err != nil {
		return nil, err
	}
	if u.Image, err = again.Image.read(root); err != nil {
		return nil, err
	}
	u.TSC, err = TSC()
	return u, err
}

// Machine returns this machine as seen by an understudy that has taken over. Memory that was the dead
// kernel's is reserved for another understudy. root is os.DirFS("/").
func (s *Self) Machine(root fs.FS) (*Machine, error) {
	m := &Machine{Segments: s.Config.Segments, Boot: s.Config.BootCPU, Parked: true, own: &s.reservation}
	if err := m.look(root); err != nil {
		return nil, err
	}
	if s.Config.Former != nil { // that kernel was an understudy itself
		m.reserved = s.Config.Former
		return m, nil
	}
	var r Reservation
	err := errors.New("the dead kernel had too little memory")
	for high := s.reservation.High.Len(); err != nil && high >= MinHigh; high = high / 2 &^ (huge - 1) {
		r, err = reserveOf(s.Config.Memory, high)
	}
	m.reserved = &r
	return m, err
}

// Bound limits what the running kernel may leave unsaved to what an understudy of this size has room
// for.
func (m *Machine) Bound() error {
	r, err := m.Reservation()
	if err != nil || m.unsaved(os.DirFS("/")) <= m.room(r) {
		return err
	}
	return os.WriteFile("/proc/sys/vm/dirty_bytes", []byte(strconv.FormatUint(m.room(r), 10)), 0)
}
