package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/partition"
)

// QEMU's programs for images, and for writing into one (package qemu-utils).
const (
	imageTool = "qemu-img"
	writeTool = "qemu-io"
)

// image runs qemu-img. The program is killed when we end, and it holds the disk's lock for
// as long as it runs: if we are killed, nobody else can claim the disk before it has ended.
func (d *Disk) image(ctx context.Context, args ...string) error {
	return d.qemuWith(ctx, nil, imageTool, args...)
}

// qemuWith runs a program of QEMU's like image. The program gets file as its descriptor 4.
func (d *Disk) qemuWith(ctx context.Context, file *os.File, tool string, args ...string) error {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.ExtraFiles = []*os.File{d.File, file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	// Pdeathsig is sent when the thread ends that started the program (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%w (install qemu-utils)", err)
		}
		return fmt.Errorf("%s %s: %w: %s", tool, args[0], err, strings.TrimSpace(said.String()))
	}
	return nil
}

// makeOverlay makes an empty overlay. The name of the disk in it is for people only: view
// names the disk each time.
func (d *Disk) makeOverlay(ctx context.Context) error {
	if err := d.backing().Prepare(); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	err := d.image(ctx, "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", d.path, d.overlay(), fmt.Sprint(d.Size))
	if err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	return nil
}

// view returns the QEMU options that open the overlay on top of the disk. We hold the lock
// of the disk, so QEMU is told not to take it.
func (d *Disk) view() string {
	options := partition.Overlay{File: d.overlay(), Backing: d.backing()}.Options()
	for i, o := range options {
		options[i] = strings.ReplaceAll(o, ",", ",,")
	}
	return strings.Join(options, ",")
}

// backing describes the selected part of the disk to QEMU.
func (d *Disk) backing() partition.Backing {
	return partition.Backing{Image: d.raw, At: d.area.At, Extents: filepath.Join(d.work, extentsName)}
}

// seal checks that the overlay is sound, and makes it durable.
func (d *Disk) seal(ctx context.Context) error {
	if err := d.image(ctx, "check", "-q", "--image-opts", d.view()); err != nil {
		return fmt.Errorf("check overlay: %w", err)
	}
	f, err := os.OpenFile(d.overlay(), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("sync overlay: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync overlay: %w", err)
	}
	return syncDir(d.work)
}

// room checks that the file system under the disk's image has room for what the overlay holds.
func (d *Disk) room() error {
	var over unix.Stat_t
	if err := unix.Stat(d.overlay(), &over); err != nil {
		return fmt.Errorf("look for room: %w", err)
	}
	return d.roomFor(over.Blocks * 512) // st_blocks is in units of 512 bytes (stat(2))
}

// roomFor checks that the file system under the disk's image has room for n bytes that are
// to be written to the disk.
func (d *Disk) roomFor(n int64) error {
	if d.Device {
		return nil
	}
	var disk unix.Stat_t
	var place unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(d.Fd()), &disk), unix.Statfs(d.path, &place)); err != nil {
		return fmt.Errorf("look for room: %w", err)
	}
	if d.area.Whole() { // only holes of the image need room, and the holes may be in other parts
		n = min(n, max(0, d.Size-disk.Blocks*512))
	}
	if free := int64(place.Bavail) * place.Bsize; n > free {
		return hint.New("disk "+d.path, fmt.Errorf("it may grow by %d bytes, and %d are free where it lies", n, free),
			"Make room there. Nothing was written to the disk.")
	}
	return nil
}

// look reads regions of the disk as they will be after the commit.
func (d *Disk) look(ctx context.Context, regions []Region) ([]Region, error) {
	var out []Region
	tmp := filepath.Join(d.work, stagingName)
	for _, g := range regions {
		n := len(g.Data)
		// count includes the skipped blocks (qemu-img.c, img_dd).
		err := d.image(ctx, "dd", "-O", "raw", fmt.Sprintf("bs=%d", sector), fmt.Sprintf("skip=%d", g.Off/sector),
			fmt.Sprintf("count=%d", (g.Off+int64(n))/sector), "--image-opts", "if="+d.view(), "of="+tmp)
		if err != nil {
			return nil, fmt.Errorf("read overlay: %w", err)
		}
		b, err := os.ReadFile(tmp)
		if err = errors.Join(err, os.Remove(tmp)); err == nil && len(b) < n {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("read overlay: %w", err)
		}
		out = append(out, Region{Off: g.Off, Data: b[:n]})
	}
	return out, nil
}

// cover writes regions into the overlay, durably.
func (d *Disk) cover(ctx context.Context, regions []Region) error {
	for _, g := range regions {
		if err := d.coverOne(ctx, g); err != nil {
			return fmt.Errorf("write to overlay: %w", err)
		}
	}
	got, err := d.look(ctx, regions)
	if err != nil {
		return err
	}
	for i, g := range regions {
		if !bytes.Equal(got[i].Data, g.Data) {
			return fmt.Errorf("write to overlay: %d bytes at %d read back differently", len(g.Data), g.Off)
		}
	}
	return d.seal(ctx)
}

func (d *Disk) coverOne(ctx context.Context, g Region) error {
	// The command cannot name a file whose path has spaces, so the file is passed as a descriptor.
	tmp, err := os.Create(filepath.Join(d.work, stagingName))
	if err != nil {
		return err
	}
	defer tmp.Close()
	if _, err := tmp.Write(g.Data); err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	write := fmt.Sprintf("write -q -s /dev/fd/4 %d %d", g.Off, len(g.Data))
	err = d.qemuWith(ctx, tmp, writeTool, "-c", write, "-c", "flush", "--image-opts", d.view())
	return errors.Join(err, os.Remove(tmp.Name()))
}

// commit writes what the overlay holds to the disk, and makes it durable. The overlay is
// not changed: until it is removed, the commit can be repeated.
func (d *Disk) commit(ctx context.Context) error {
	if err := d.backing().Prepare(); err != nil { // the disk may have another name by now
		return err
	}
	if err := d.image(ctx, "commit", "-q", "-d", "--image-opts", d.view()); err != nil {
		return err
	}
	return d.Sync()
}
