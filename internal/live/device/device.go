// Package device hands disks from a dead side to the living one, and carries
// salvaged data into it.
package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/qmp"
)

// rehearsalBytes is enough for a journal and a few files. mkfs.xfs(8) makes nothing below
// 300 MiB since xfsprogs 5.19, mkfs.btrfs(8) nothing below some 110 MiB.
const (
	rehearsalBytes      = 64 << 20
	largeRehearsalBytes = 320 << 20
)

// makers are, for each file system, the package that has its mkfs, the options with which
// mkfs makes one in a file and prints nothing, and the size of the rehearsal disk in bytes.
var makers = map[string]struct {
	pack  string
	quiet []string
	size  int64
}{
	"ext3": {"e2fsprogs", []string{"-q", "-F"}, rehearsalBytes}, "ext4": {"e2fsprogs", []string{"-q", "-F"}, rehearsalBytes},
	"xfs": {"xfsprogs", []string{"-q", "-f"}, largeRehearsalBytes}, "btrfs": {"btrfs-progs", []string{"-q", "-f"}, largeRehearsalBytes},
}

// MakeRehearsal makes a small disk with an empty file system of a kind. Its mkfs gets all of options, and of
// without, which turn features off (-inrext64=0), those whose feature this mkfs knows.
func MakeRehearsal(ctx context.Context, path, kind string, options, without []string) error {
	m, ok := makers[kind]
	if !ok {
		return fmt.Errorf("make rehearsal disk: file system %s is not supported", kind)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("make rehearsal disk: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(m.size); err != nil {
		return fmt.Errorf("make rehearsal disk: %w", err)
	}
	args := slices.Concat(m.quiet, options, known(ctx, kind, without), []string{path})
	if out, err := exec.CommandContext(ctx, "mkfs."+kind, args...).CombinedOutput(); err != nil {
		return hint.New("make rehearsal disk", fmt.Errorf("mkfs.%s %s: %w: %s", kind, strings.Join(args, " "), err, out), "Install "+m.pack+", which has mkfs."+kind+", in a version that knows these features.")
	}
	if err := digHoles(f); err != nil {
		return fmt.Errorf("make rehearsal disk: %w", err)
	}
	return nil
}

// listing are the arguments that make mkfs list the features that it knows. Without the name of a disk, mkfs prints
// its usage.
var listing = map[string][]string{"xfs": nil, "btrfs": {"-O", "list-all"}}

// known returns those of options whose feature mkfs knows.
func known(ctx context.Context, kind string, options []string) []string {
	list, asked := listing[kind]
	if !asked {
		return options
	}
	said, _ := exec.CommandContext(ctx, "mkfs."+kind, list...).CombinedOutput() // printing the usage counts as a failure
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool {
		name, _, _ := strings.Cut(strings.TrimPrefix(o[len("-i"):], "^"), "=")
		return !bytes.Contains(said, []byte(name))
	})
}

// MakeOverlay makes a qcow2 file that takes what is written to an image. The image itself does not change.
func MakeOverlay(ctx context.Context, path, image string) error {
	size, err := ImageSize(image)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", image, path, fmt.Sprint(size))
	if out, err := cmd.CombinedOutput(); err != nil {
		return hint.New("make overlay", fmt.Errorf("qemu-img create: %w: %s", err, out), "Install qemu-utils.")
	}
	return nil
}

// digHoles punches holes where a file is zero, since its bytes take up memory: an empty log of
// XFS is 64 MiB of zeros.
func digHoles(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const piece = 64 << 10
	data, zeros := make([]byte, piece), make([]byte, piece)
	for at := int64(0); at < size; {
		at, err = f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // the rest is a hole
		}
		if err != nil {
			return err
		}
		at &^= piece - 1
		n, err := f.ReadAt(data, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if bytes.Equal(data[:n], zeros[:n]) {
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(n)); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return nil
}

// SetDisk puts the image of a disk behind the drive that has been empty in the guest so far
// (partition.Vacancy). QEMU takes the image's lock, and SetDisk fails if another process still
// holds it.
func SetDisk(ctx context.Context, monitor *qmp.Client, d partition.Disk) error {
	err := monitor.QOMSet(ctx, "/machine/peripheral/"+d.QDev(), "drive", d.Node())
	if err != nil {
		return fmt.Errorf("hand over disk %s: %w", d.Name, err)
	}
	return nil
}

// ImageSize is the size of an image file or a block device, in bytes.
func ImageSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("size image: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("size image %s: %w", path, err)
	}
	return size, nil
}

// Staging is a sparse file on a tmpfs that the understudy has as a read-only
// disk. The host gathers salvaged data into it, and the understudy's disk
// requests move the data from there, so that no byte of it passes through an
// emulated CPU. The understudy sees nothing else of the dead memory.
type Staging struct {
	file *os.File
	size int64
	data []byte
}

// stagingExtra is room for the plan besides the data, in bytes.
const stagingExtra = 64 << 20

// NewStaging makes a staging area with room for all that a partition with that much
// memory, in bytes, can leave unsaved. It takes up nothing until data is gathered.
func NewStaging(path string, memory int64) (*Staging, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make staging: %w", err)
	}
	s := &Staging{file: f, size: memory + stagingExtra}
	if err := f.Truncate(s.size); err != nil {
		return nil, errors.Join(fmt.Errorf("make staging: %w", err), s.Close())
	}
	return s, nil
}

// OpenStaging opens the staging area that NewStaging made in another process.
func OpenStaging(path string) (*Staging, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open staging: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open staging: %w", err), f.Close())
	}
	return &Staging{file: f, size: st.Size()}, nil
}

// Path is the path of the staging file.
func (s *Staging) Path() string { return s.file.Name() }

// Reserve allocates the first n bytes, so that writing to them through the mapping
// cannot fail.
func (s *Staging) Reserve(n int64) error {
	if n == 0 {
		return nil
	}
	if err := unix.Fallocate(int(s.file.Fd()), 0, 0, n); err != nil {
		return fmt.Errorf("reserve %d bytes in %s: %w", n, s.file.Name(), err)
	}
	return nil
}

// Reset frees what was reserved. It is for when nobody reads the staged data any more.
func (s *Staging) Reset() error {
	if err := unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, s.size); err != nil {
		return fmt.Errorf("free %s: %w", s.file.Name(), err)
	}
	return nil
}

// Map maps the staging area into memory.
func (s *Staging) Map() ([]byte, error) {
	if s.data != nil {
		return s.data, nil
	}
	data, err := unix.Mmap(int(s.file.Fd()), 0, int(s.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map staging: %w", err)
	}
	s.data = data
	return data, nil
}

// Close removes the staging area.
func (s *Staging) Close() error {
	errs := []error{s.file.Close(), os.Remove(s.file.Name())}
	if s.data != nil {
		errs = append(errs, unix.Munmap(s.data))
		s.data = nil
	}
	return errors.Join(errs...)
}

// Flushes is how often a partition has flushed a disk.
func Flushes(ctx context.Context, monitor *qmp.Client, d partition.Disk) (int64, error) {
	stats, err := monitor.QueryBlockStats(ctx)
	if err != nil {
		return 0, fmt.Errorf("count flushes of disk %s: %w", d.Name, err)
	}
	for _, s := range stats {
		if strings.HasPrefix(s.QDev, "/machine/peripheral/"+d.QDev()+"/") || s.QDev == d.QDev() {
			return s.Stats.FlushOperations, nil
		}
	}
	return 0, fmt.Errorf("count flushes: no disk %s in the partition", d.Name)
}
