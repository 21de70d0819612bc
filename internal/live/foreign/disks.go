package foreign

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"understudy.dev/understudy/internal/live/qcow2"
)

// Disk is a file or a block device that a QEMU has open for writing.
type Disk struct {
	Path   string
	Format string // "raw", or the format of an image that is not raw: "qcow2"
}

// Disks returns the files that may be the machine's disks: regular files and block devices that
// are open for writing, except for deleted files, files that are only appended to (logs), memory,
// flash memory, and files that have another name in QEMU's mount namespace. Whether there is a file
// system in one, only its content shows.
func (m *Machine) Disks() ([]Disk, error) {
	fds, err := filepath.Glob(m.proc("fd/[0-9]*"))
	if err != nil || len(fds) == 0 {
		return nil, fmt.Errorf("look at files of process %d: it has ended", m.PID)
	}
	mem, err := m.memory()
	if err != nil {
		return nil, err
	}
	var out []Disk
	flash, raw := m.flash(), m.files(rawFiles(m.args))
	for _, fd := range fds {
		path, err := os.Readlink(fd)
		if err != nil || !filepath.IsAbs(path) || path == mem.path {
			continue
		}
		if writes, err := m.writes(filepath.Base(fd)); err != nil || !writes {
			continue
		}
		if seen := slices.ContainsFunc(out, func(d Disk) bool { return d.Path == path }); seen {
			continue
		}
		disk, ok := diskAt(fd, path, flash)
		if !ok {
			continue
		}
		if st, err := os.Stat(fd); err == nil && slices.ContainsFunc(raw, func(f os.FileInfo) bool { return same(f, st) }) {
			disk.Format = "raw"
		}
		out = append(out, disk)
	}
	return out, nil
}

// OpenFiles returns the regular files that it has open, whether for writing or not.
func (m *Machine) OpenFiles() (paths []string) {
	fds, _ := filepath.Glob(m.proc("fd/[0-9]*")) // the pattern is well-formed
	for _, fd := range fds {
		path, err := os.Readlink(fd)
		st, bad := os.Stat(fd)
		if err == nil && bad == nil && st.Mode().IsRegular() && filepath.IsAbs(path) && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// diskAt returns the disk behind a descriptor, if it is a disk, and if its path leads to it from
// here, too: QEMU may have its own mount namespace.
func diskAt(fd, path string, flash []os.FileInfo) (Disk, bool) {
	st, err := os.Stat(fd)
	if err != nil || strings.HasSuffix(path, " (deleted)") || slices.ContainsFunc(flash, func(f os.FileInfo) bool { return same(f, st) }) {
		return Disk{}, false
	}
	device := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	here, err := os.Stat(path)
	if err != nil || !device && !st.Mode().IsRegular() || !same(here, st) {
		return Disk{}, false
	}
	f, err := os.Open(path)
	if err != nil {
		return Disk{}, false
	}
	defer f.Close()
	head := make([]byte, 8)
	if _, err := f.ReadAt(head, 0); err != nil {
		return Disk{}, false // it is too small to be a disk
	}
	return Disk{Path: path, Format: format(head)}, true
}

// same reports whether a and b are of the same file, or of the same device.
func same(a, b os.FileInfo) bool {
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	if x.Rdev != 0 || y.Rdev != 0 {
		return x.Rdev == y.Rdev && a.Mode().Type() == b.Mode().Type()
	}
	return os.SameFile(a, b)
}

// format is the format of an image, by its first bytes (QEMU, block/qcow2.h, vmdk.c, vhdx.c, qed.h;
// in vdi.c, the signature is further on).
func format(head []byte) string {
	for magic, name := range map[string]string{qcow2.Magic: qcow2.Format, "KDMV": "vmdk", "COWD": "vmdk", "vhdxfile": "vhdx", "conectix": "vpc", "QED\x00": "qed", "<<< ": "vdi"} {
		if strings.HasPrefix(string(head), magic) {
			return name
		}
	}
	return "raw"
}

// writes reports whether a descriptor is open for writing at any offset, and not only for appending
// (proc(5), fdinfo: the flags of open(2), octal).
func (m *Machine) writes(fd string) (bool, error) {
	b, err := os.ReadFile(m.proc("fdinfo/" + fd))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
			access := int(flags) & syscall.O_ACCMODE
			return access != syscall.O_RDONLY && int(flags)&syscall.O_APPEND == 0, err
		}
	}
	return false, fmt.Errorf("descriptor %s has no flags", fd)
}
