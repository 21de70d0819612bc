package metal

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// An understudy that has taken over is protected again by another: on memory that was the dead kernel's,
// and on one of its CPUs, from the same files, which lie on a disk that was taken over.

// Again is what another understudy is started from. Paths are as in the machine's own kernel.
type Again struct {
	Kernel File   `json:"kernel"`
	Image  File   `json:"image"`
	Append string `json:"append,omitempty"`
}

// File is a file as it was when the understudy was started.
type File struct {
	Path string `json:"path"`
	Sum  string `json:"sha256"`
}

// NewFile is a file of that content, at a path that must lie on a disk of the role.
func NewFile(path string, content []byte, role wire.Config) (f File, err error) {
	f.Sum = fmt.Sprintf("%x", sha256.Sum256(content))
	if f.Path, err = filepath.Abs(path); err == nil {
		f.Path, err = filepath.EvalSymlinks(f.Path) // what they lead to is elsewhere later
	}
	if err != nil {
		return f, err
	}
	return f, OnDisk(f.Path, role)
}

// OnDisk says whether a file, or a directory, lies on a disk that is taken over. Its path has no
// symbolic links.
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
	for _, d := range role.Disks {
		mounted, err := device(d.Mount)
		if err == nil && mounted == at && (d.Mount == "/" || strings.HasPrefix(path, d.Mount+"/")) {
			return nil
		}
	}
	return fmt.Errorf("%s is on no disk that is taken over, and would not be there to start another understudy from", path)
}

// read reads the file below a directory, unless it has changed.
func (f File) read(root string) ([]byte, error) {
	b, err := os.ReadFile(root + f.Path)
	if err == nil && fmt.Sprintf("%x", sha256.Sum256(b)) != f.Sum {
		err = fmt.Errorf("%s has changed since the understudy was started", f.Path)
	}
	return b, err
}

// Successor is another understudy that does what this one did, whose files are below that
// directory now.
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

// Machine is this machine as an understudy that has taken over sees it, with what was the dead
// kernel's reserved for another. root is os.DirFS("/").
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

// Bound has the running kernel leave no more unsaved than an understudy of this size has room for.
func (m *Machine) Bound() error {
	r, err := m.Reservation()
	if err != nil || m.unsaved(os.DirFS("/")) <= m.room(r) {
		return err
	}
	return os.WriteFile("/proc/sys/vm/dirty_bytes", []byte(strconv.FormatUint(m.room(r), 10)), 0)
}
