// Package inventory lists the files that a dead kernel had in memory: which bytes of
// each are there, which of those were not on the disk, and what is missing or refused.
//
// # Caveats
//
// It describes the memory alone. What is absent may be on the disk, or be a hole.
package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// Image is the opened memory of a machine.
type Image struct {
	Kernel *kernel.Kernel
	Cache  *pagecache.Cache
	Clock  *pagecache.Clock // nil if it cannot be read
	Stages []Stage

	file ram.Memory // as it was opened
	mem  ram.Memory // the memory of the kernel: the same, or arranged as the kernel knows it
}

// Stage is a step of the work, and how long it took.
type Stage struct {
	Name string
	Took time.Duration
}

// Open opens the memory of a machine, read-only, and finds the kernel in it.
func Open(path string, options ...kernel.Option) (*Image, error) {
	return OpenFiles([]string{path}, options...)
}

// OpenFiles is Open for memory that is in several files (ram.OpenFiles).
func OpenFiles(paths []string, options ...kernel.Option) (*Image, error) {
	start := time.Now()
	mem, err := ram.OpenFiles(paths...)
	if err != nil {
		return nil, err
	}
	m := &Image{file: mem}
	m.stage("open", start)
	if err := m.find(options); err != nil {
		if i := m.Info(); i.Cut() {
			err = fmt.Errorf("%w; %s", err, i.Advice())
		}
		return nil, errors.Join(fmt.Errorf("read %s: %w", paths[0], err), mem.Close())
	}
	return m, nil
}

func (m *Image) find(options []kernel.Option) error {
	var err error
	start := time.Now()
	m.Kernel, err = kernel.Find(m.file, options...)
	if errors.Is(err, kernel.ErrNoKernel) {
		return fmt.Errorf("%w: it must be all memory of an x86-64 or arm64 machine with Linux 5.10 or later, booted far enough to have mounted something", err)
	}
	if err != nil {
		return err
	}
	m.mem = m.Kernel.Memory()
	m.stage("find kernel", start)
	start = time.Now()
	if m.Cache, err = pagecache.Open(m.Kernel); err != nil {
		return err
	}
	m.Clock, _ = m.Cache.Clock() // without it, ages and new files are unknown
	m.stage("read layouts", start)
	return nil
}

// Close closes the memory. The image must not be used after that.
func (m *Image) Close() error {
	_ = m.Kernel.Keep() // if this fails, it is learned again next time
	return m.file.Close()
}

// Info describes the file that the memory comes from, if it is known.
func (m *Image) Info() ram.Info {
	if i, ok := m.file.(interface{ Info() ram.Info }); ok {
		return i.Info()
	}
	return ram.Info{}
}

// stage records that a step of the work has ended.
func (m *Image) stage(name string, start time.Time) {
	m.Stages = append(m.Stages, Stage{Name: name, Took: time.Since(start)})
}

// Stage does a step of the work and records how long it took.
func (m *Image) Stage(name string, work func() error) error {
	defer m.stage(name, time.Now())
	return work()
}

// FileSystem is a mounted file system, whose unsaved files can be found.
type FileSystem struct {
	Super *pagecache.Superblock
	// Device is the name of the device, or that of the type if there is no
	// device. No other file system has the same, and it can be the name of a
	// directory.
	Device string
	// Server is the server that the files are on, as it was named at the mount: their paths are
	// then those on the server. It is empty if the files are this machine's.
	Server string

	image *Image
	own   func(*pagecache.Inode) bool // whether an inode is the file system's own; nil if none is
	// What waits to be written on a file system that is not understood.
	waitingFiles int
	waitingBytes int64
	waitingErr   error
}

// exactTypes are the types of file systems whose files are known to come out
// exactly. Others are refused by name.
var exactTypes = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "tmpfs", "devtmpfs", "ramfs", "rootfs"}

// understood reports whether files of this file system are handed out.
func (f *FileSystem) understood() bool {
	return slices.Contains(exactTypes, f.Super.Type) || f.Server != ""
}

// elsewhere are types of file systems that have no device in the kernel, like those of the network, and that
// keep unwritten data in buffers of their own, or write to their disks by themselves: if no page of theirs
// waits, something else may.
var elsewhere = []string{"bcachefs", "lustre", "ubifs", "zfs"}

// keepsElsewhere reports whether pages do not show what waits to be written on a file system.
func (f *FileSystem) keepsElsewhere() bool { return slices.Contains(elsewhere, f.Super.Type) }

// HasDevice reports whether the file system has a disk, or stands for one that has, like a
// network file system. Pseudo file systems such as proc have nothing to save.
func (f *FileSystem) HasDevice() bool {
	return f.Super.Dev.Major() != 0 || f.Super.Type == "btrfs" || f.Server != "" || f.keepsElsewhere() || f.waits()
}

// waits reports whether anything waits, or may wait, on a file system that is not understood.
func (f *FileSystem) waits() bool { return f.waitingFiles > 0 || f.waitingErr != nil }

// FileSystems returns all file systems except pseudo file systems on which nothing waits to be
// written, and the types of the latter. The error says what could not be read; the results are
// valid nevertheless.
func (m *Image) FileSystems() (found []*FileSystem, pseudo []string, err error) {
	defer m.stage("walk file systems", time.Now())
	var errs []error
	taken := map[string]bool{Manifest: true}
	for s, err := range m.Cache.Superblocks() {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f := &FileSystem{Super: s, image: m}
		if s.Remote() {
			f.Server, _ = m.Cache.Server(s) // without a server, what waits is counted
		}
		if !f.understood() && s.Type != "bdev" {
			f.waitingFiles, f.waitingBytes, f.waitingErr = m.Cache.Waiting(s)
		}
		// The kernel's own file system of block devices holds no files.
		if s.Type == "bdev" || !f.HasDevice() && !f.Super.InMemory() {
			if !slices.Contains(pseudo, s.Type) {
				pseudo = append(pseudo, s.Type)
			}
			continue
		}
		f.Device = deviceName(s, f.Server, taken)
		taken[f.Device] = true
		f.own = m.ownOf(s)
		found = append(found, f)
	}
	slices.Sort(pseudo)
	return found, pseudo, errors.Join(errs...)
}

// deviceName makes a name for a file system that is not taken yet. The kernel names
// file systems without a device after their type: the minor number of their anonymous
// device is added, as /proc/PID/mountinfo shows it. A file system of a server is named
// after the server.
func deviceName(s *pagecache.Superblock, server string, taken map[string]bool) string {
	id := cmp.Or(server, s.ID)
	name := component(strings.TrimLeft(strings.ReplaceAll(id, "/", "!"), "."))
	if id == s.Type || id == "" {
		name = fmt.Sprintf("%s-%d", component(s.Type), s.Dev.Minor())
	}
	for n := 0; taken[name]; n++ {
		name = fmt.Sprintf("%s-%d", component(id), int(s.Dev.Minor())+n)
	}
	return name
}

// OfUUID returns the file systems with a UUID, or else those that had it when they were mounted.
func OfUUID(all []*FileSystem, id pagecache.UUID) []*FileSystem {
	var now, had []*FileSystem
	for _, f := range all {
		if f.Super.UUID == id {
			now = append(now, f)
		} else if f.Super.Had(id) {
			had = append(had, f)
		}
	}
	if len(now) == 0 {
		return had
	}
	return now
}

// Choose returns the file systems that a user means: by device, UUID or type. An
// empty name means all that have a device.
func Choose(all []*FileSystem, name string) ([]*FileSystem, error) {
	var chosen []*FileSystem
	var names []string
	var ofUUID []*FileSystem
	if id, err := addr.ParseUUID(name); err == nil && id != (pagecache.UUID{}) {
		ofUUID = OfUUID(all, id)
	}
	for _, f := range all {
		names = append(names, f.Device)
		switch {
		case name == "" && f.HasDevice(),
			name != "" && (name == f.Device || name == f.Super.Type || name == f.Super.ID),
			slices.Contains(ofUUID, f):
			chosen = append(chosen, f)
		}
	}
	if name != "" && len(chosen) == 0 {
		return nil, fmt.Errorf("choose file system %q: no such device, type or UUID; there are: %s", name, strings.Join(names, ", "))
	}
	return chosen, nil
}
