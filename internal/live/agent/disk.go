package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/wire"
)

// diskPath finds the disk whose serial number is name: a virtio, SCSI or SATA disk, or the first
// namespace of an NVMe controller. If name ends in -partN, as in the links that udev makes, it finds the disk's
// partition N; what follows -lvm- names a logical volume on that. Serial numbers of virtio-blk have at most 20 bytes (VIRTIO_BLK_ID_BYTES).
func diskPath(name string) (string, error) { return findDisk("/sys/block", name) }

func findDisk(sys, name string) (string, error) {
	disks, err := filepath.Glob(filepath.Join(sys, "*"))
	if err != nil {
		return "", err
	}
	name, _, _ = strings.Cut(name, "-lvm-")
	serial, part, parted := strings.Cut(name, "-part")
	for _, d := range disks {
		switch {
		case hasSerial(d, name):
			return "/dev/" + filepath.Base(d), nil
		case parted && hasSerial(d, serial):
			return partition(d, part)
		}
	}
	return "", fmt.Errorf("no disk has serial number %q", name)
}

func hasSerial(dir, serial string) bool {
	return serial != "" && !disk.Hidden(os.DirFS(dir), ".") && disk.Serial(os.DirFS(dir), ".") == serial
}

// partition is the device of a disk's partition of that number.
func partition(dir, number string) (string, error) {
	at, err := disk.PartitionDir(os.DirFS(filepath.Dir(dir)), filepath.Base(dir), number)
	if err != nil {
		return "", err
	}
	return "/dev/" + filepath.Base(at), nil
}

// AwaitDisk waits, within a limit, until there is a disk of that serial number, and returns
// its path. A disk answers some time after its driver has found it.
func AwaitDisk(ctx context.Context, name string, limit time.Duration) (path string, err error) {
	var last error
	err = poll(ctx, limit, func() (bool, error) {
		path, last = diskPath(name)
		return last == nil, nil
	})
	return path, cmp.Or(last, err)
}

// mount mounts a shared disk that has just become this partition's. First it
// drops what the kernel may have cached of the empty drive that was in the
// disk's place.
func (a *Agent) mount(ctx context.Context, r wire.MountRequest) (result wire.MountResult, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.disk(r.Disk)
	if err != nil {
		return result, err
	}
	if a.mountPoint(d.Name) != "" {
		return result, nil // it stayed mounted when its side could not stop
	}
	if r.Check {
		if result.Check, err = a.check(ctx, d); err != nil {
			return result, err
		}
	}
	return result, a.mountDisk(ctx, d)
}

// disk is the configuration of a disk.
func (a *Agent) disk(name string) (wire.Disk, error) {
	for _, d := range a.config.Disks {
		if d.Name == name {
			return d, nil
		}
	}
	return wire.Disk{}, fmt.Errorf("disk %q is not in this partition's configuration", name)
}

// devicePath is the block device that a disk's file system is on.
func devicePath(d wire.Disk) (string, error) {
	up, err := standing(d)
	if err != nil {
		return "", err
	}
	if len(up) <= len(layers(d)) {
		return "", fmt.Errorf("the layers (md, LUKS, LVM) under the file system of disk %s are not active", d.Name)
	}
	return up[len(up)-1][0], nil
}

// freshen makes the kernel drop what it may have cached of a disk before the disk became this
// partition's, and read the disk's partition table if the configuration names a partition of it.
func freshen(ctx context.Context, d wire.Disk) error {
	for _, name := range []string{d.Name, d.Mirror} {
		if name == "" {
			continue
		}
		if err := freshenOne(ctx, name, d.Part != 0); err != nil {
			return err
		}
	}
	return nil
}

func freshenOne(ctx context.Context, name string, divided bool) error {
	path, err := diskPath(name)
	if err != nil {
		return err
	}
	if err := flushBuffers(path); err != nil || !divided {
		return err
	}
	return readTable(ctx, path)
}

// readTable makes the kernel read the partition table of a disk. That fails while a partition of the disk is open,
// and udev opens each new one for a moment: readTable tries again until busyLimit.
func readTable(ctx context.Context, path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := retryBusy(ctx, busyLimit, func() error { return unix.IoctlSetInt(fd, unix.BLKRRPART, 0) }); err != nil {
		return fmt.Errorf("read the partition table of %s: %w", path, err)
	}
	return nil
}

func (a *Agent) mountDisk(ctx context.Context, d wire.Disk) error {
	if err := a.prepareDevice(ctx, d); err != nil {
		return err
	}
	path, err := devicePath(d)
	if err != nil {
		return err
	}
	if err := flushBuffers(path); err != nil {
		return err
	}
	m := mounted{Disk: d, device: path}
	log := listen()
	// What held the disk right before may not be quite gone.
	err = retryBusy(ctx, time.Second, m.mount)
	if said := log.said(kernelName(path)); err != nil {
		return mountError(d, path, said, err)
	}
	if err := m.open(); err != nil {
		return errors.Join(err, m.unmount(ctx))
	}
	m.unwatch = a.watchDisk(d, path)
	a.mounts = append(a.mounts, m)
	return a.keep()
}

// kernelName is the name of a device in the kernel's messages: vda, dm-0.
func kernelName(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	return filepath.Base(path)
}

// mountError says why a mount failed, with what the kernel logged meanwhile, and what can be done.
func mountError(d wire.Disk, path, said string, err error) error {
	missing := errors.Is(err, unix.ESRCH) // fs/quota/dquot.c, find_quota_format
	err = fmt.Errorf("mount %s (%s) on %s: %w", path, d.Type, d.Mount, err)
	if said != "" {
		err = fmt.Errorf("%w; the kernel says: %s", err, said)
	}
	// With and without a capital letter up to 7.2 (fs/btrfs/disk-io.c, btrfs_replay_log).
	if strings.Contains(said, "ailed to recover log tree") {
		return hint.New("mount disk "+d.Name, err, "Its btrfs has a log of fsyncs that no kernel may be able to replay, a fault of btrfs that was seen up to Linux 7.2. "+
			"Nothing was changed. Take what is unsaved out of the dead kernel's memory (understudy salvage extract), and then discard that log (btrfs rescue zero-log).")
	}
	if missing {
		return hint.New("mount disk "+d.Name, err, "Its file system has quotas enabled, and this guest's kernel lacks their format: add its module quota_v2 to the guest's image.")
	}
	return err
}

func flushBuffers(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("drop cached blocks of %s: %w", path, err)
	}
	return nil
}

// mountFlag has the flags of mount(2) that an option sets and clears, if mount(2) takes the option
// as a flag and not as text.
type mountFlag struct{ set, clear uintptr }

// mountFlags are the options that are flags (mount(8), file-system-independent options).
var mountFlags = map[string]mountFlag{
	"defaults": {}, "async": {clear: unix.MS_SYNCHRONOUS}, "sync": {set: unix.MS_SYNCHRONOUS}, "dirsync": {set: unix.MS_DIRSYNC},
	"ro": {set: unix.MS_RDONLY}, "rw": {clear: unix.MS_RDONLY},
	"noatime": {set: unix.MS_NOATIME}, "atime": {clear: unix.MS_NOATIME},
	"nodiratime": {set: unix.MS_NODIRATIME}, "diratime": {clear: unix.MS_NODIRATIME},
	"relatime": {set: unix.MS_RELATIME}, "norelatime": {clear: unix.MS_RELATIME},
	"strictatime": {set: unix.MS_STRICTATIME}, "nostrictatime": {clear: unix.MS_STRICTATIME},
	"lazytime": {set: unix.MS_LAZYTIME}, "nolazytime": {clear: unix.MS_LAZYTIME},
	"nodev": {set: unix.MS_NODEV}, "dev": {clear: unix.MS_NODEV},
	"noexec": {set: unix.MS_NOEXEC}, "exec": {clear: unix.MS_NOEXEC},
	"nosuid": {set: unix.MS_NOSUID}, "suid": {clear: unix.MS_NOSUID},
	"nosymfollow": {set: unix.MS_NOSYMFOLLOW}, "symfollow": {clear: unix.MS_NOSYMFOLLOW},
	"silent": {set: unix.MS_SILENT}, "loud": {clear: unix.MS_SILENT},
}

// mountOptions splits mount(8)'s options into mount(2)'s flags and data. Of two options that
// contradict each other, the later one counts.
func mountOptions(options string) (flags uintptr, data string) {
	var text []string
	for o := range strings.SplitSeq(options, ",") {
		if f, ok := mountFlags[o]; ok {
			flags = flags&^f.clear | f.set
		} else if o != "" {
			text = append(text, o)
		}
	}
	return flags, strings.Join(text, ",")
}

// readOnly reports whether a file system is mounted with these options to be read only.
func readOnly(options string) bool {
	flags, _ := mountOptions(options)
	return flags&unix.MS_RDONLY != 0
}

// mounted is a disk that is mounted. A disk that is not the pair's belongs to a rehearsal.
type mounted struct {
	wire.Disk
	device  string // the block device that its file system is on
	unwatch func()
	failed  string // why some of its data could not be written; empty if all of it could

	top    *os.File // its top directory, for syncs; nil if it could not be opened yet
	before string   // what health.errors said first
}

// mount mounts the disk on all its directories, or on none.
func (m *mounted) mount() error {
	for i, p := range m.Points() {
		if err := m.mountOn(p); err != nil {
			for _, done := range slices.Backward(m.Points()[:i]) {
				err = errors.Join(err, unix.Unmount(done.Dir, 0))
			}
			return err
		}
	}
	return nil
}

// mountOn mounts the disk on one of its directories.
func (m *mounted) mountOn(p wire.MountPoint) error {
	if err := os.MkdirAll(p.Dir, 0o755); err != nil {
		return err
	}
	flags, data := mountOptions(p.Options)
	return unix.Mount(m.device, p.Dir, m.Type, flags, data)
}

// unmount unmounts the disk from all its directories, or from none.
func (m *mounted) unmount(ctx context.Context) error {
	points := m.Points()
	for i, p := range slices.Backward(points) {
		if err := unmount(ctx, p.Dir); err != nil {
			for _, done := range points[i+1:] {
				err = errors.Join(err, m.mountOn(done))
			}
			return err
		}
	}
	return nil
}

// mountPoint is the directory where a disk is mounted, or empty if it is not.
func (a *Agent) mountPoint(disk string) string {
	for _, m := range a.mounts {
		if m.Name == disk {
			return m.Mount
		}
	}
	return ""
}

// busyLimit is how long a file system may stay busy after its users have ended.
const busyLimit = 5 * time.Second

// unmountAll unmounts the disks, the one mounted last first, since it may be mounted inside another. A
// file system that stays busy is an error: if its disk were handed over, two sides would write to it. A
// file system whose data cannot be written is an error too; umount(2) does not report that.
func (a *Agent) unmountAll(ctx context.Context) error {
	for len(a.mounts) > 0 {
		last := &a.mounts[len(a.mounts)-1]
		if _, err := a.disk(last.Name); err == nil { // otherwise it belongs to a rehearsal, and is thrown away
			if err := a.save(last); err != nil {
				return err
			}
		}
		last.close() // save opens it again if it cannot be unmounted
		if err := last.unmount(ctx); err != nil {
			return err
		}
		if err := last.released(ctx); err != nil {
			return err
		}
		last.unwatch()
		a.mounts = a.mounts[:len(a.mounts)-1]
		if err := a.keep(); err != nil {
			return err
		}
	}
	return a.endLayers(ctx)
}

// unmount unmounts what is mounted on a directory. If it stays busy, the error names its
// users.
func unmount(ctx context.Context, dir string) error {
	err := retryBusy(ctx, busyLimit, func() error { return unix.Unmount(dir, 0) })
	if err != nil {
		err = fmt.Errorf("unmount %s: %w", dir, err)
	}
	if errors.Is(err, unix.EBUSY) {
		users := append(usersOf(dir), mountsIn(dir)...)
		err = fmt.Errorf("%w; it is in use by %s", err, cmp.Or(strings.Join(users, ", "), "no process: the kernel itself, such as its NFS server"))
	}
	return err
}

// released makes sure that a file system which was unmounted is gone. Another mount of it, also one in
// another mount namespace, would keep it active, and what is written there would never reach the disk.
// If it is still active, released mounts it again where it was, and the error names what keeps it.
func (m *mounted) released(ctx context.Context) error {
	// O_EXCL fails while a file system holds the device (block/bdev.c).
	err := retryBusy(ctx, busyLimit, func() error {
		fd, err := unix.Open(m.device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("unmount %s: its device %s: %w", m.Mount, m.device, err)
	if errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%w; its file system is still kept active by %s", err,
			cmp.Or(strings.Join(mountsOf(m.device), ", "), "no mount that a process has: it may be frozen (fsfreeze --unfreeze)"))
	}
	return errors.Join(err, m.mount())
}

// retryBusy calls do again for as long as it fails with EBUSY, within a limit.
func retryBusy(ctx context.Context, limit time.Duration, do func() error) error {
	var last error
	err := poll(ctx, limit, func() (bool, error) {
		if last = do(); errors.Is(last, unix.EBUSY) {
			return false, nil
		}
		return last == nil, last
	})
	if err == nil {
		return nil
	}
	return cmp.Or(last, err)
}
