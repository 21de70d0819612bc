package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// RehearsalDisk is the serial number of the small, empty disk that a takeover is
// rehearsed on.
const RehearsalDisk = "rehearsal"

// rehearsalFiles are written in a rehearsal, of these sizes in bytes: whole
// pages and a part of one, one request and several.
var rehearsalFiles = []int64{1, page, 10*page + 100, chunk + 3*page + 1, 64 * page, 200}

// rehearse does what a takeover will ask for, on a disk of its own: mount,
// write files by handle, say where the addresses are, start the services, wait
// until they are ready, stop them, unmount. What of it the kernel does for the
// first time takes several times as long as the second, and under emulation more;
// and what cannot work is better known before a crash than in it.
func (a *Agent) rehearse(ctx context.Context, r wire.RehearseRequest) (_ none, err error) {
	disk := wire.Disk{Name: RehearsalDisk, Type: r.Type, Mount: r.Mount, Options: r.Options}
	a.mu.Lock()
	err = a.mountDisk(ctx, disk)
	a.mu.Unlock()
	if err != nil {
		return none{}, err
	}
	defer func() {
		if _, stopErr := a.stop(ctx, none{}); err == nil {
			err = stopErr
		}
		if armErr := a.armNFS(); err == nil {
			err = armErr
		}
	}()
	if err := rehearseWriting(r.Mount); err != nil {
		return none{}, err
	}
	if _, err := a.sync(ctx, none{}); err != nil {
		return none{}, err
	}
	if err := a.network.rehearse(); err != nil {
		return none{}, err
	}
	if !r.Services {
		return none{}, nil
	}
	if err := a.rehearseNFS(ctx); err != nil {
		return none{}, err
	}
	return a.start(ctx, none{})
}

// rehearseWriting brings new files up to date with whatever the staging disk
// holds.
func rehearseWriting(dir string) error {
	var files []wire.File
	for i, size := range rehearsalFiles {
		f, err := newFile(filepath.Join(dir, fmt.Sprintf("file%d", i)), size)
		if err != nil {
			return err
		}
		f.Runs = []wire.Run{{Len: size}}
		files = append(files, f)
	}
	if err := syncfs(dir); err != nil {
		return err
	}
	staging, err := openStaging()
	if err != nil {
		return err
	}
	defer staging.Close()
	mount, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer mount.Close()
	w := &writer{mount: int(mount.Fd()), staging: int(staging.Fd())}
	if err := w.writeAll(files, nil); err != nil {
		return err
	}
	var result wire.ApplyResult
	for i := range w.targets {
		w.targets[i].report(&result)
	}
	if len(result.Failures) > 0 {
		return fmt.Errorf("write file by handle: %s", result.Failures[0].Reason)
	}
	return nil
}

// newFile makes an empty file that is to have a size, and says whose it is.
func newFile(path string, size int64) (wire.File, error) {
	f, err := os.Create(path)
	if err != nil {
		return wire.File{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return wire.File{}, fmt.Errorf("stat: %w", err)
	}
	generation, err := unix.IoctlGetInt(int(f.Fd()), fsIocGetVersion)
	if err != nil {
		return wire.File{}, fmt.Errorf("get generation: %w", err)
	}
	return wire.File{Inode: st.Ino, Generation: uint32(generation), Size: size}, nil
}

// fsIocGetVersion is FS_IOC_GETVERSION, _IOR('v', 1, long): it gives an inode's
// generation (include/uapi/linux/fs.h).
const fsIocGetVersion = 0x80087601
