package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

func TestMountOptions(t *testing.T) {
	flags, data := mountOptions("noatime,data=journal,,nosuid,commit=1")
	if flags != unix.MS_NOATIME|unix.MS_NOSUID || data != "data=journal,commit=1" {
		t.Errorf("flags %#x, data %q", flags, data)
	}
	flags, data = mountOptions("sync,nodev,noatime,async,dev,suid,exec,diratime,nolazytime,relatime")
	if flags != unix.MS_NOATIME|unix.MS_RELATIME || data != "" {
		t.Errorf("of options that take back others: flags %#x, data %q", flags, data)
	}
}

// TestUnmountAll: disks are unmounted from the last to the first, once their users have
// ended. A disk that stays busy is reported with its users, and stays mounted.
func TestUnmountAll(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: no mounts")
	}
	top := t.TempDir()
	mount := func(dir string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(dir, 0o755), unix.Mount("none", dir, "tmpfs", 0, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}
	a := New(nil)
	for i, dir := range []string{top, filepath.Join(top, "in"), filepath.Join(top, "in", "it")} {
		mount(dir)
		a.mounts = append(a.mounts, mounted{Disk: wire.Disk{Name: fmt.Sprint(i), Mount: dir}, device: "/dev/null", unwatch: func() {}})
	}
	inner := filepath.Join(top, "in", "it")
	foreign := filepath.Join(inner, "foreign")
	mount(foreign)
	user := exec.Command("/bin/sleep", "100")
	user.Dir = inner
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := a.unmountAll(ctx)
	user.Process.Kill()
	user.Wait()
	if !errors.Is(err, unix.EBUSY) || len(a.mounts) != 3 {
		t.Fatalf("busy: %v, mounted %v", err, a.mounts)
	}
	for _, want := range []string{"unmount " + inner, fmt.Sprintf("%d (sleep)", user.Process.Pid), "the mount on " + foreign} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	// This user of the disk ends within the limit.
	again := exec.Command("/bin/sleep", "0.1")
	again.Dir = inner
	if err := errors.Join(unix.Unmount(foreign, 0), again.Start()); err != nil {
		t.Fatal(err)
	}
	go again.Wait()
	if err := a.unmountAll(t.Context()); err != nil || len(a.mounts) != 0 {
		t.Errorf("%v, left %v", err, a.mounts)
	}
	if at := mountsIn(filepath.Dir(top)); slices.Contains(at, "the mount on "+top) {
		t.Error("still mounted")
	}
}

// TestCheckWithoutChecker: a guest without e2fsck says so.
func TestCheckWithoutChecker(t *testing.T) {
	have := haveChecker()
	greeting, err := New(nil).greet()
	if err != nil || greeting.Checker != (have == nil) {
		t.Errorf("%+v, %v; %v", greeting, err, have)
	}
}

func TestFindDisk(t *testing.T) {
	sys := t.TempDir()
	for name, text := range map[string]string{
		"vda/serial": "data\n", "vdb/serial": "odd-part3\n", "vdc/size": "8\n",
		"nvme1c0n1/device/serial": "PM9A3\n", "nvme1c0n1/hidden": "1\n", "nvme1n1/device/serial": "PM9A3\n", "nvme1n1/hidden": "0\n",
		"nvme0n1/device/serial": "S4EWNX0R  \n", "nvme0n1/nvme0n1p2/partition": "2\n", "nvme0n1/nvme0n1p12/partition": "12\n",
	} {
		at := filepath.Join(sys, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"data": "/dev/vda", "odd-part3": "/dev/vdb", "S4EWNX0R": "/dev/nvme0n1", "S4EWNX0R-part2": "/dev/nvme0n1p2",
		"S4EWNX0R-part12": "/dev/nvme0n1p12", "S4EWNX0R-part1": "", "S4EWNX0R-part": "", "PM9A3": "/dev/nvme1n1", "other": "", "": "",
	} {
		got, err := findDisk(sys, name)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("disk %q is %q, %v, not %q", name, got, err, want)
		}
	}
}

// TestUnmountFails: if the disk did not take what services wrote last, that is an error, and the disk stays mounted.
// The error is permanent, though the kernel reports it only once.
func TestUnmountFails(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: no mounts")
	}
	small, dir := t.TempDir(), t.TempDir()
	if err := unix.Mount("none", small, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	device := loopDevice(t, small)
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", device).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	m := mounted{Disk: wire.Disk{Name: "data", Mount: dir, Type: "ext4"}, device: device, unwatch: func() {}}
	if err := m.mount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "last"), bytes.Repeat([]byte("x"), 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	a := New(nil)
	a.mounts, a.config.Disks = []mounted{m}, []wire.Disk{m.Disk}
	for range 2 {
		if err := a.unmountAll(t.Context()); err == nil || !strings.Contains(err.Error(), "disk data") || len(a.mounts) != 1 {
			t.Errorf("%v, left %v", err, a.mounts)
		}
	}
	if _, err := a.sync(t.Context(), none{}); err == nil {
		t.Error("all of it counts as durable")
	}
}

// extDisk mounts a new ext4 on a loop device, whose file is in a directory, as the pair's only disk.
func extDisk(t *testing.T, in, options string, mke2fs ...string) (a *Agent, device string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root: no mounts")
	}
	device = loopDevice(t, in)
	if out, err := exec.Command("mke2fs", append(mke2fs, "-q", "-t", "ext4", device)...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	m := mounted{Disk: wire.Disk{Name: "data", Mount: t.TempDir(), Type: "ext4", Options: options}, device: device, unwatch: func() {}}
	if err := m.mount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(m.Mount, unix.MNT_DETACH) })
	if err := m.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	a = New(nil)
	a.mounts, a.config.Disks = []mounted{m}, []wire.Disk{m.Disk}
	return a, device
}

// TestSyncAsked: a failed write is reported although somebody else has asked for it before.
func TestSyncAsked(t *testing.T) {
	small := t.TempDir()
	if err := unix.Mount("none", small, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	a, _ := extDisk(t, small, "", "-O", "^has_journal")
	dir := a.mounts[0].Mount
	if err := os.WriteFile(filepath.Join(dir, "last"), bytes.Repeat([]byte("x"), 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("sync", "-f", dir).Run(); err == nil {
		t.Fatal("the disk took it all")
	}
	if _, err := a.sync(t.Context(), none{}); err == nil {
		t.Error("all of it counts as durable")
	}
}

// TestSyncDamaged: what was written to a file system that has found itself damaged, or that takes no writes any more, does
// not count as durable, though the kernel has nothing left to sync.
func TestSyncDamaged(t *testing.T) {
	for name, tt := range map[string]struct {
		options string
		harm    func(dir, device string) error
		want    string
	}{
		"none": {"", func(string, string) error { return nil }, ""},
		"an error": {"errors=continue", func(_, device string) error {
			return os.WriteFile("/sys/fs/ext4/"+filepath.Base(device)+"/trigger_fs_error", []byte("1"), 0)
		}, "errors_count 1"},
		"an error that ends writes": {"errors=remount-ro", func(_, device string) error {
			return os.WriteFile("/sys/fs/ext4/"+filepath.Base(device)+"/trigger_fs_error", []byte("1"), 0)
		}, "takes no writes any more"},
		"read-only": {"", func(dir, _ string) error {
			return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}, "takes no writes any more"},
		"read-only from the start": {"ro", func(string, string) error { return nil }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a, device := extDisk(t, t.TempDir(), tt.options)
			if err := tt.harm(a.mounts[0].Mount, device); err != nil {
				t.Skip(err)
			}
			for range 2 {
				_, err := a.sync(t.Context(), none{})
				if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q", err, tt.want)
				}
			}
			if err := a.unmountAll(t.Context()); (err == nil) != (tt.want == "") {
				t.Errorf("unmount: %v", err)
			}
		})
	}
}

// TestSyncFrozen: a frozen file system has everything, and nothing waits for it to be thawed.
func TestSyncFrozen(t *testing.T) {
	a, _ := extDisk(t, t.TempDir(), "")
	top := int(a.mounts[0].top.Fd())
	const fiFreeze, fiThaw = 0xc0045877, 0xc0045878 // include/uapi/linux/fs.h
	if err := unix.IoctlSetInt(top, fiFreeze, 0); err != nil {
		t.Fatal(err)
	}
	thaw := time.AfterFunc(time.Minute, func() { t.Error("it waits"); _ = unix.IoctlSetInt(top, fiThaw, 0) })
	_, err := a.sync(t.Context(), none{})
	thaw.Stop()
	if err := errors.Join(err, unix.IoctlSetInt(top, fiThaw, 0), a.unmountAll(t.Context())); err != nil {
		t.Error(err)
	}
}

// loopDevice makes a block device of 8 MiB that may have partitions, of a file in a directory.
func loopDevice(t *testing.T, dir string) string {
	t.Helper()
	image := filepath.Join(dir, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 8<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--partscan", image).Output()
	if err != nil {
		t.Skipf("losetup: %v: no loop devices here", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() }) // it ends with its last user
	return device
}

// TestReadTable: a partition that is open for a moment, as udev opens it, does not keep the table from
// being read.
func TestReadTable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: no loop devices")
	}
	device := loopDevice(t, t.TempDir())
	if out, err := exec.Command("addpart", device, "1", "2048", "2048").CombinedOutput(); err != nil {
		t.Fatalf("addpart: %v: %s", err, out)
	}
	var major, minor uint32
	name := filepath.Base(device) // nobody need make nodes in /dev
	b, err := os.ReadFile("/sys/class/block/" + name + "p1/dev")
	if err == nil {
		_, err = fmt.Sscanf(string(b), "%d:%d", &major, &minor)
	}
	node := filepath.Join(t.TempDir(), "part")
	if err == nil {
		err = unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor)))
	}
	if err != nil {
		t.Fatal(err)
	}
	part, err := os.Open(node)
	if err != nil {
		t.Skipf("open a device here: %v", err)
	}
	closed := make(chan error, 1)
	time.AfterFunc(200*time.Millisecond, func() { closed <- part.Close() })
	// The device has no table, so the partition is gone once that has been read.
	if err := readTable(t.Context(), device); err != nil {
		t.Errorf("while a partition is open: %v", err)
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

// TestReleased: a file system that another mount keeps active does not count as unmounted. It is
// mounted again where it was, and the error names the other mount, also one that is only in the mount
// namespace of another process.
func TestReleased(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root: no mounts")
	}
	dir, other := t.TempDir(), t.TempDir()
	device := loopDevice(t, t.TempDir())
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", device).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	m := mounted{Disk: wire.Disk{Name: "data", Mount: dir, Type: "ext4"}, device: device, unwatch: func() {}}
	if err := m.mount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	a := New(nil)
	a.mounts = []mounted{m}
	held := func(want string) {
		t.Helper()
		if err := a.unmountAll(t.Context()); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil || len(mountsOf(device)) < 2 || len(a.mounts) != 1 {
			t.Errorf("it is not as it was: %v, mounts %q, %v", err, mountsOf(device), a.mounts)
		}
	}
	if err := unix.Mount(dir, other, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	held("the mount on " + other)
	if err := unix.Unmount(other, 0); err != nil {
		t.Fatal(err)
	}
	container := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000")
	ready, err := container.StdoutPipe()
	if err == nil {
		err = container.Start()
	}
	if err == nil {
		_, err = ready.Read(make([]byte, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = container.Process.Kill() })
	held(fmt.Sprintf("the mount on %s of process %d (sleep)", dir, container.Process.Pid))
	if err := container.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = container.Wait() // it was killed
	if err := a.unmountAll(t.Context()); err != nil || len(a.mounts) != 0 {
		t.Errorf("%v, left %v", err, a.mounts)
	}
}
