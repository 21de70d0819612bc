package metal

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/mounts"
	"understudy.dev/understudy/internal/live/wire"
)

// sector is the unit in which sysfs counts a disk's size, in bytes (Documentation/ABI/stable/sysfs-block,
// size).
const sector = 512

// DumpOf returns the name of a block device of this machine, given as MAJOR:MINOR, for use as a role's dump.
// root is os.DirFS("/").
func DumpOf(root fs.FS, device string) (string, error) { return serialOf(root, device) }

// CheckDump returns why a role's dump disk cannot take a core of size bytes: it is not here, too small, or not
// free. A swap area is free: a kernel that has died does not need it any more. root is as for CheckRole.
func CheckDump(root fs.FS, role wire.Config, size int64) error {
	if role.Dump == "" {
		return nil
	}
	at, err := dumpAt(root, role.Dump)
	if err == nil {
		err = dumpFits(root, at, size)
	}
	if err == nil {
		err = dumpFree(root, at)
	}
	for _, d := range role.Disks {
		if d.Name == role.Dump {
			err = fmt.Errorf("it has the file system of %s", d.Mount)
		}
	}
	if err != nil {
		return fmt.Errorf("disk %s cannot take a dump: %w", role.Dump, err)
	}
	return nil
}

// dumpAt is the directory in sysfs of a disk, or of a partition of one.
func dumpAt(root fs.FS, name string) (string, error) {
	disks, err := bySerial(root)
	if err != nil {
		return "", err
	}
	dirs := named(disks, name)
	if len(dirs) != 1 {
		return "", fmt.Errorf("%d disks have its serial number", len(dirs))
	}
	_, number, parted := strings.Cut(name, "-part")
	if !parted || len(disks[name]) > 0 {
		return dirs[0], nil
	}
	return disk.PartitionDir(root, dirs[0], number)
}

func dumpFits(root fs.FS, at string, size int64) error {
	has, err := sizeOf(root, at)
	if err == nil && has < size {
		err = fmt.Errorf("it has %d MiB, and a dump of this machine's memory takes %d", has>>20, (size+1<<20-1)>>20)
	}
	return err
}

// sizeOf returns the size in bytes of a disk, or of a partition, whose directory in sysfs is at.
func sizeOf(root fs.FS, at string) (int64, error) {
	b, err := fs.ReadFile(root, at+"/size")
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return sectors * sector, err
}

// dumpFree returns an error if a disk or a partition is in use: it has partitions, something lies on it, or it
// is mounted.
func dumpFree(root fs.FS, at string) error {
	if parts, _ := fs.Glob(root, at+"/*/partition"); len(parts) > 0 { // the patterns are well-formed
		return errors.New("it has partitions: name one of them")
	}
	if holders, _ := fs.Glob(root, at+"/holders/*"); len(holders) > 0 {
		return fmt.Errorf("%s lies on it", path.Base(holders[0]))
	}
	device, err := fs.ReadFile(root, at+"/dev")
	if err != nil {
		return err
	}
	info, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return err
	}
	for m := range mounts.Parse(string(info)) {
		if m.Device == strings.TrimSpace(string(device)) {
			return fmt.Errorf("it is mounted on %s", m.Dir)
		}
	}
	return nil
}

// vacantEdge is how many bytes Vacant examines at the beginning and at the end of a disk that is no swap area.
// File systems, and what lies under them, have their superblocks there; btrfs has it at 64 KiB.
const vacantEdge = 128 << 10

// A swap area has its magic at the end of its first page (include/linux/swap.h, union swap_header).
const (
	swapMagicAt = 4096 - 10
	swapMagic   = "SWAPSPACE2"
)

// Vacant returns an error unless a dump may be written to a disk of size bytes: there must be nothing on it,
// except a swap area.
func Vacant(r io.ReaderAt, size int64) error {
	edge := min(vacantEdge, size)
	head, tail := make([]byte, edge), make([]byte, edge)
	if _, err := r.ReadAt(head, 0); err != nil {
		return err
	}
	if _, err := r.ReadAt(tail, size-edge); err != nil {
		return err
	}
	switch {
	case len(head) >= swapMagicAt+len(swapMagic) && string(head[swapMagicAt:][:len(swapMagic)]) == swapMagic:
		return nil
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return errors.New("it has a dump already: salvage that (understudy salvage), then run mkswap on it, or zero its first and its last 128 KiB")
	case !bytes.Equal(head, make([]byte, edge)), !bytes.Equal(tail, make([]byte, edge)):
		return errors.New("its first or last 128 KiB are not zeros, and it is no swap area: if nothing on it is needed, run mkswap on it, or zero both")
	}
	return nil
}
