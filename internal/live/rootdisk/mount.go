package rootdisk

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/hint"
)

// Disk is a disk image, or a block device, that nobody else uses, with the root file system
// on it.
type Disk struct {
	Path string
	UUID string // of the root file system

	claim *fence.Claim
	root  fileSystem
	rest  []fileSystem // the others of the ext family
}

// Open claims a disk and finds the root file system on it: the one that has /etc/fstab, or
// has /usr and is the only one. Unless where is the whole disk, it must be in that part of it. Open fails if the
// disk is in use, if a file system on it was not unmounted, and if there are several root file systems.
func Open(path string, where disk.Where) (*Disk, error) {
	claim, err := fence.Take(path)
	if err != nil {
		return nil, err
	}
	d := &Disk{Path: path, claim: claim}
	if err := d.find(where); err != nil {
		return nil, errors.Join(err, claim.Close())
	}
	return d, nil
}

// Root is what the kernel's parameter root= is to be. What activates a logical volume at boot knows it only by its name.
func (d *Disk) Root() string {
	if name := d.root.Mapper(); name != "" {
		return "/dev/mapper/" + name
	}
	return "UUID=" + d.UUID
}

// Close syncs the disk and releases it.
func (d *Disk) Close() error { return errors.Join(d.claim.Sync(), d.claim.Close()) }

func (d *Disk) find(where disk.Where) error {
	kinds, err := d.probe()
	if err != nil {
		return err
	}
	var roots []fileSystem
	var names []string
	for _, fs := range d.rest {
		if n := len(fs.At); n > 1 { // a loop device shows one piece
			kinds = append(kinds, fmt.Sprintf("ext4 in %s, which is in %d pieces (pvmove --alloc contiguous makes it one, in the machine itself)", fs.Name(), n))
			continue
		}
		is, err := d.isRoot(fs)
		switch {
		case err != nil:
			return err
		case !is:
			kinds = append(kinds, "ext4 without a system, as /boot is")
		case where.Whole() || where == fs.Where:
			roots, names = append(roots, fs), append(names, fs.Name())
		default:
			kinds = append(kinds, "one in "+fs.Name())
		}
	}
	switch len(roots) {
	case 1:
		d.root, d.UUID = roots[0], roots[0].uuid
		d.rest = slices.DeleteFunc(d.rest, func(fs fileSystem) bool { return fs.Where == d.root.Where })
		return nil
	case 0:
		return hint.New("look at disk "+d.Path, fmt.Errorf("no root file system of the ext family %s, but %s", in(where), cmp.Or(strings.Join(kinds, ", "), "nothing that we know")),
			"Name the raw image of a disk with a Linux root file system, ext3 or ext4: bare, in a partition, or in a linear logical volume.")
	}
	return hint.New("look at disk "+d.Path, fmt.Errorf("%s have a root file system each", strings.Join(names, " and ")),
		"Say which of them the pair is to boot: --partition N, or --lvm GROUP/NAME.")
}

func in(where disk.Where) string {
	if where.Whole() {
		return "on it"
	}
	return "in " + where.Name()
}

// probe finds the file systems of the ext family on the disk, and returns the kinds of the others.
func (d *Disk) probe() (others []string, err error) {
	areas, unusable, err := disk.Areas(d.claim, d.claim.Size)
	if err != nil {
		return nil, fmt.Errorf("look at disk %s: %w", d.Path, err)
	}
	for _, u := range unusable {
		others = append(others, u.Error())
	}
	for _, a := range areas {
		fs, err := probe(device.On(d.claim.File, a), a)
		if err != nil {
			return nil, hint.New("look at disk "+d.Path, err,
				"Boot the machine that it is of and shut it down in good order. If its kernel has died and its memory is there, first: understudy salvage apply.")
		}
		if fs.kind == "ext4" {
			d.rest = append(d.rest, fs)
		} else if fs.kind != "" {
			others = append(others, fs.kind)
		}
	}
	return others, nil
}

// isRoot reports whether a file system is the root file system of a system.
func (d *Disk) isRoot(fs fileSystem) (is bool, err error) {
	err = d.on(fs, func(root *os.Root) error {
		_, fstab := root.Stat(fstabPath)
		_, usr := root.Stat("usr")
		is = fstab == nil || usr == nil && len(d.rest) == 1
		return nil
	})
	return is, err
}

// on mounts a file system, where nobody else sees it, while do runs.
func (d *Disk) on(fs fileSystem, do func(*os.Root) error) error {
	done := make(chan error, 1)
	go func() {
		// A thread with a mount namespace of its own ends with this goroutine.
		runtime.LockOSThread()
		done <- d.mounted(fs, do)
	}()
	return <-done
}

func (d *Disk) mounted(fs fileSystem, do func(*os.Root) error) (err error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return hint.New("make a mount namespace", err, "Run this as root.")
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	loop, err := attach(d.claim.File, fs.At[0])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loop.Close()) }() // which detaches it
	dir, err := os.MkdirTemp("", "understudy-root-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount(loop.Name(), dir, fs.kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount the root file system of %s: %w", d.Path, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	root, err := os.OpenRoot(dir) // its symbolic links must not lead outside
	if err != nil {
		return err
	}
	return errors.Join(do(root), root.Close())
}

// attachTries is how often a loop device is looked for: others may take the free one first.
const attachTries = 20

// attach makes a block device of a part of a file, until the device is closed and unmounted
// (loop(4)).
func attach(f *os.File, part disk.Stretch) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, hint.New("find a loop device", err, "Load the module loop, and run this as root.")
	}
	defer control.Close()
	for range attachTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open loop device: %w", err)
		}
		c := unix.LoopConfig{Fd: uint32(f.Fd())}
		c.Info.Offset, c.Info.Sizelimit, c.Info.Flags = uint64(part.Off), uint64(part.Len), unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &c)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach loop device: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("attach loop device: %w", unix.EBUSY)
}
