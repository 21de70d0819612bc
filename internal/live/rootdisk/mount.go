package rootdisk

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

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
	rest  []fileSystem // the others that are mountable
}

// Open claims a disk and finds the root file system on it: the one that has /etc/fstab, or
// has /usr and is the only one. Unless where is the whole disk, it must be in that part of it. Open changes nothing, and fails if the
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

// Parameters are those of the kernel that say where the root file system is. What activates a logical volume at boot
// knows it only by its name.
func (d *Disk) Parameters() string {
	root := "root=UUID=" + d.UUID
	if name := d.root.Mapper(); name != "" {
		root = "root=/dev/mapper/" + name
	}
	if d.root.subvolume != "" {
		root += " rootflags=subvol=" + d.root.subvolume
	}
	return root
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
			kinds = append(kinds, fmt.Sprintf("%s in %s, which is in %d pieces (pvmove --alloc contiguous makes it one, in the machine itself)", fs.kind, fs.Name(), n))
			continue
		}
		is, err := d.isRoot(&fs)
		switch {
		case err != nil:
			return err
		case !is:
			kinds = append(kinds, fs.kind+" without a system, as /boot is")
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
		return hint.New("look at disk "+d.Path, fmt.Errorf("no root file system %s, but %s", in(where), cmp.Or(strings.Join(kinds, ", "), "nothing that we know")),
			"Name the raw image of a disk with a Linux root file system, ext4, ext3, XFS or btrfs: bare, in a partition, or in a linear logical volume.")
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

// probe finds the mountable file systems on the disk, and returns the kinds of the others.
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
			return nil, d.refuse(fs, err)
		}
		if fs.mountable() {
			d.rest = append(d.rest, fs)
		} else if fs.kind != "" {
			others = append(others, fs.kind)
		}
	}
	return others, nil
}

// refuse returns the error that a file system is not as it should be.
func (d *Disk) refuse(fs fileSystem, err error) error {
	err = fmt.Errorf("%s in %s: %w", fs.kind, fs.Name(), err)
	advice := "This machine's kernel log has the reason: dmesg."
	switch {
	case errors.Is(err, errUnclean):
		advice = "Boot the machine that it is of and shut it down in good order. If its kernel has died and its memory is there, first: understudy salvage apply."
	case errors.Is(err, unix.ENODEV):
		advice = "This machine's kernel has no " + fs.kind + ": load its module, or prepare the disk on another machine."
	}
	return hint.New("look at disk "+d.Path, err, advice)
}

// isRoot reports whether a file system is the root file system of a system, of btrfs with the subvolume that is.
func (d *Disk) isRoot(fs *fileSystem) (is bool, err error) {
	err = d.on(*fs, look, func(root *os.Root) error {
		_, fstab := root.Stat(fstabPath)
		_, usr := root.Stat("usr")
		is = fstab == nil || usr == nil && len(d.rest) == 1
		return nil
	})
	if err != nil || is || fs.kind != "btrfs" {
		return is, err
	}
	top := *fs
	top.subvolume = "/"
	var found []string
	err = d.on(top, look, func(root *os.Root) (err error) {
		found, err = systems(root)
		return err
	})
	switch {
	case err != nil || len(found) == 0:
		return false, err
	case len(found) > 1:
		return false, hint.New("look at disk "+d.Path, fmt.Errorf("%s has a system in each of its subvolumes %s", fs.Name(), strings.Join(found, ", ")),
			"Make the one that the pair is to boot the default: mount the file system, and run btrfs subvolume set-default.")
	}
	fs.subvolume = found[0]
	return true, nil
}

// subvolumeRoot is the inode number of each btrfs subvolume's root directory: BTRFS_FIRST_FREE_OBJECTID
// (include/uapi/linux/btrfs_tree.h).
const subvolumeRoot = 256

// systems returns the subvolumes in the top level of btrfs that have a system. If there are several, because
// some are copies of others, only those count whose fstab mounts themselves.
func systems(top *os.Root) (names []string, err error) {
	entries, err := fs.ReadDir(top.FS(), ".")
	if err != nil {
		return nil, err
	}
	var own []string
	for _, e := range entries {
		st, err := top.Lstat(e.Name())
		if err != nil {
			return nil, err
		}
		fstab, err := top.ReadFile(path.Join(e.Name(), fstabPath))
		if sys, is := st.Sys().(*syscall.Stat_t); err != nil || !is || sys.Ino != subvolumeRoot {
			continue
		}
		names = append(names, e.Name())
		if rootSubvolume(string(fstab)) == e.Name() {
			own = append(own, e.Name())
		}
	}
	if len(names) > 1 && len(own) > 0 {
		names = own
	}
	return names, nil
}

// access is what a file system is mounted for.
type access bool

const (
	look   access = false // nothing is written to it, not even what its log has
	change access = true
)

// on mounts a file system, where nobody else sees it, while do runs.
func (d *Disk) on(fs fileSystem, to access, do func(*os.Root) error) error {
	done := make(chan error, 1)
	go func() {
		// A thread with a mount namespace of its own ends with this goroutine.
		runtime.LockOSThread()
		done <- d.mounted(fs, to, do)
	}()
	return <-done
}

func (d *Disk) mounted(fs fileSystem, to access, do func(*os.Root) error) (err error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return hint.New("make a mount namespace", err, "Run this as root.")
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	loop, err := attach(d.claim.File, fs.At[0], to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loop.Close()) }() // which detaches it
	dir, err := os.MkdirTemp("", "understudy-root-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	flags, options := uintptr(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC), mountable[fs.kind]
	if to == look {
		flags |= unix.MS_RDONLY
	}
	if fs.subvolume != "" {
		options = "subvol=" + fs.subvolume
	}
	if fs.kind == "btrfs" {
		defer func() { err = errors.Join(err, forget(loop.Name())) }()
	}
	if err := unix.Mount(loop.Name(), dir, fs.kind, flags, options); err != nil {
		if to == look && errors.Is(err, unix.EROFS) { // its log is to be replayed
			return d.refuse(fs, errUnclean)
		}
		return d.refuse(fs, fmt.Errorf("mount: %w", err))
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	root, err := os.OpenRoot(dir) // its symbolic links must not lead outside
	if err != nil {
		return err
	}
	return errors.Join(do(root), root.Close())
}

// forget makes the kernel forget which btrfs was on a device: otherwise it does not mount another copy of it, with the
// same UUID, that is older (fs/btrfs/volumes.c, device_list_add).
func forget(device string) error {
	control, err := os.OpenFile("/dev/btrfs-control", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // nor is btrfs
	}
	if err != nil {
		return err
	}
	defer control.Close()
	var args struct { // include/uapi/linux/btrfs.h, struct btrfs_ioctl_vol_args
		_    int64
		name [4088]byte
	}
	copy(args.name[:], device)
	const forgetDevice = 1<<30 | unsafe.Sizeof(args)<<16 | 0x94<<8 | 5 // BTRFS_IOC_FORGET_DEV
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), forgetDevice, uintptr(unsafe.Pointer(&args))); errno != 0 {
		return fmt.Errorf("forget btrfs on %s: %w", device, errno)
	}
	return nil
}

// attachTries is how often a loop device is looked for: others may take the free one first.
const attachTries = 20

// attach makes a block device of a part of a file, until the device is closed and unmounted
// (loop(4)).
func attach(f *os.File, part disk.Stretch, to access) (*os.File, error) {
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
		if to == look {
			c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
		}
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
