// Package qcow2 shows the disk in a qcow2 image as a raw file, by QEMU's storage daemon.
//
// # Caveats
//
// Whether an image is qcow2 is told by its content, which the guest has written if the image is raw: so other files that an
// image refers to are opened only if the caller has named them.
package qcow2

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
)

// Format is QEMU's name of the format, and Magic is how an image begins.
const (
	Format = "qcow2"
	Magic  = "QFI\xfb"
)

// Fields of the header (QEMU, docs/interop/qcow2.txt), and bits of incompatible_features.
const (
	headerLen       = 104
	atVersion       = 4
	atBacking       = 8 // offset and length of the name
	atCrypt         = 32
	atFeatures      = 72
	dirtyBit        = 1 << 0
	corruptBit      = 1 << 1
	externalBit     = 1 << 2
	compressionBit  = 1 << 3
	extendedL2Bit   = 1 << 4
	understoodBits  = dirtyBit | compressionBit | extendedL2Bit
	compatV2, newV3 = 2, 3
	lenV2           = 72 // of the header of version 2; extensions follow it
	atHeaderLen     = 100
	backingFormat   = 0xe2792aca // an extension
	maxName         = 1023
	maxChain        = 32
)

// Is reports whether a file is a qcow2 image. A block device is not looked at: it may contain one, but is taken as it is.
func Is(path string) (bool, error) {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() {
		return false, err
	}
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, len(Magic))
	n, err := f.ReadAt(b, 0)
	if n < len(b) && errors.Is(err, io.EOF) {
		return false, nil
	}
	return string(b) == Magic, err
}

// chain checks that the disk in an image can be shown: that the image, with its backing files, has all of it, and is not known
// to be damaged. A backing file must be among backing. It reports whether there is one.
func chain(path string, backing []string) (backed bool, err error) {
	for range maxChain {
		below, format, err := headerOf(path)
		if err != nil {
			return false, hint.New("open image "+path, err, "Make a raw image of it, and name that: qemu-img convert -O raw.")
		}
		if below == "" {
			return backed, nil
		}
		backed = true
		if !named(below, backing) {
			return false, hint.New("open image "+path, fmt.Errorf("its backing file is said to be %s", below), "If that is so, say --backing "+below+".")
		}
		if path = below; format == "raw" {
			return true, nil
		}
	}
	return false, fmt.Errorf("open image %s: more than %d backing files, one behind the other", path, maxChain)
}

// named reports whether a path leads to one of the files.
func named(path string, files []string) bool {
	st, err := os.Stat(path)
	return err == nil && slices.ContainsFunc(files, func(f string) bool {
		other, err := os.Stat(f)
		return err == nil && os.SameFile(st, other)
	})
}

// headerOf checks the header of an image, and returns its backing file, if it has one, with the format of that.
func headerOf(path string) (backing, format string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	b := make([]byte, headerLen)
	if n, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) || n < lenV2 {
		return "", "", fmt.Errorf("read header: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	if err := check(b); err != nil {
		return "", "", err
	}
	if backing, format, err = backingOf(b, f); err != nil || backing == "" {
		return "", "", err
	}
	if !filepath.IsAbs(backing) {
		backing = filepath.Join(filepath.Dir(path), backing)
	}
	return backing, format, nil
}

// backingOf returns the name of the backing file, as the header has it, and its format.
func backingOf(header []byte, image io.ReaderAt) (name, format string, err error) {
	be := binary.BigEndian
	at, n := be.Uint64(header[atBacking:]), be.Uint32(header[atBacking+8:])
	if at == 0 {
		return "", "", nil
	}
	if n == 0 || n > maxName || at > 1<<30 {
		return "", "", fmt.Errorf("the name of its backing file makes no sense: %d bytes at %d", n, at)
	}
	b := make([]byte, n)
	if _, err := image.ReadAt(b, int64(at)); err != nil {
		return "", "", fmt.Errorf("read name of backing file: %w", err)
	}
	name = string(b)
	if before, _, colon := strings.Cut(name, ":"); colon && !strings.Contains(before, "/") {
		return "", "", fmt.Errorf("its backing file is no local file: %q", name)
	}
	next := int64(lenV2)
	if be.Uint32(header[atVersion:]) >= newV3 {
		next = int64(be.Uint32(header[atHeaderLen:]))
	}
	for range maxChain {
		var h [8]byte
		if _, err := image.ReadAt(h[:], next); err != nil {
			return "", "", fmt.Errorf("read header extension: %w", err)
		}
		kind, n := be.Uint32(h[:]), be.Uint32(h[4:])
		if kind == backingFormat && n < 16 {
			b := make([]byte, n)
			_, err := image.ReadAt(b, next+8)
			if format = string(b); err == nil && format != Format && format != "raw" {
				err = fmt.Errorf("a backing file of format %q is not supported", format)
			}
			return name, format, err
		}
		if kind == 0 || n > 1<<20 {
			break
		}
		next += 8 + int64(n+7)&^7
	}
	return "", "", fmt.Errorf("it does not say which format its backing file %s has: say so (qemu-img rebase -u -F FORMAT -b %[1]s)", name)
}

func check(header []byte) error {
	be := binary.BigEndian
	version := be.Uint32(header[atVersion:])
	var features uint64
	if version >= newV3 {
		features = be.Uint64(header[atFeatures:])
	}
	switch {
	case version != compatV2 && version != newV3:
		return fmt.Errorf("version %d of qcow2 is not supported", version)
	case be.Uint32(header[atCrypt:]) != 0:
		return errors.New("an encrypted qcow2 image is not supported")
	case features&corruptBit != 0:
		return errors.New("the qcow2 image is marked as corrupt: repair it first (qemu-img check -r)")
	case features&externalBit != 0:
		return errors.New("a qcow2 image with an external data file is not supported")
	case features&^understoodBits != 0:
		return fmt.Errorf("the qcow2 image has unknown features: %#x", features&^understoodBits)
	}
	return nil
}

// Disk is the disk in an image.
type Disk struct {
	Path string // of the raw file that shows it

	image  string
	daemon *exec.Cmd
	said   bytes.Buffer
	ended  chan struct{}
	err    error // why the daemon has ended; valid then
	dir    string
}

const (
	daemonName = "qemu-storage-daemon"
	dirPrefix  = "understudy-qcow2-"
	// readyLimit and endLimit are how long the daemon may take to show the disk, and to write what it still has and end.
	readyLimit = time.Minute
	endLimit   = 5 * time.Minute
)

// Open shows the disk in an image, whose backing files must be among backing. If write is false, the image may be in use by a QEMU: then it is read as it is, without what
// that QEMU has not written yet. Otherwise nobody else may have it, and has it until Close, or until this process has ended.
func Open(path string, write bool, backing []string) (_ *Disk, err error) {
	backed, err := chain(path, backing)
	if err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	d := &Disk{image: path, ended: make(chan struct{})}
	if d.dir, err = os.MkdirTemp("", dirPrefix); err != nil {
		return nil, err
	}
	d.Path = filepath.Join(d.dir, filepath.Base(path))
	ready := filepath.Join(d.dir, ".ready")
	err = os.WriteFile(d.Path, nil, 0o600)
	if err == nil {
		err = d.start(write, backed, ready)
	}
	if err == nil {
		err = d.await(ready)
	}
	if err != nil {
		advice := ""
		if errors.Is(err, exec.ErrNotFound) || strings.Contains(err.Error(), "fuse") {
			advice = "Install " + daemonName + " (package qemu-system-common). It shows the disk over FUSE: /dev/fuse must be there, and this needs the rights of root."
		}
		return nil, hint.New("show the disk in "+path, errors.Join(err, d.Close()), advice)
	}
	return d, nil
}

// start starts the daemon, which makes the file ready when it has begun.
func (d *Disk) start(write, backed bool, ready string) error {
	file := map[string]any{"driver": "file", "node-name": "file", "filename": d.image, "read-only": !write, "locking": "auto"}
	disk := map[string]any{"driver": "qcow2", "node-name": "disk", "file": "file", "read-only": !write}
	if !backed {
		disk["backing"] = nil
	}
	if write {
		disk["discard"], file["discard"] = "unmap", "unmap"
	} else {
		disk["force-share"], file["force-share"] = true, true
	}
	export := map[string]any{"type": "fuse", "id": "export", "node-name": "disk", "mountpoint": d.Path, "writable": write, "allow-other": "off"}
	args := []string{}
	for _, a := range []struct {
		option string
		value  any
	}{{"--blockdev", file}, {"--blockdev", disk}, {"--export", export}} {
		b, err := json.Marshal(a.value)
		if err != nil {
			return err
		}
		args = append(args, a.option, string(b))
	}
	d.daemon = exec.Command(daemonName, append(args, "--pidfile", ready)...)
	// Not even a Ctrl-C ends it before us. If we are killed, it writes what it has, and ends.
	d.daemon.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	d.daemon.Stdout, d.daemon.Stderr = &d.said, &d.said
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is sent when the thread ends that started the program (prctl(2))
		defer runtime.UnlockOSThread()
		err := d.daemon.Start()
		started <- err
		if err == nil {
			d.err = d.daemon.Wait()
			close(d.ended)
		}
	}()
	err := <-started
	if err != nil {
		d.daemon = nil
	}
	return err
}

// await waits until the disk is shown.
func (d *Disk) await(ready string) error {
	for end := time.Now().Add(readyLimit); ; time.Sleep(5 * time.Millisecond) {
		select {
		case <-d.ended:
			d.daemon = nil
			return fmt.Errorf("%s has ended: %v: %s", daemonName, d.err, strings.TrimSpace(d.said.String()))
		default:
		}
		if _, err := os.Stat(ready); err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is not ready after %v", daemonName, readyLimit)
		}
	}
}

// Close makes all that was written durable in the image, and releases it.
func (d *Disk) Close() error {
	var err error
	if d.daemon != nil {
		_ = d.daemon.Process.Signal(unix.SIGTERM) // it may have ended
		select {
		case <-d.ended:
			err = d.err
		case <-time.After(endLimit):
			err = fmt.Errorf("%s has not ended after %v", daemonName, endLimit)
		}
		if err != nil {
			err = fmt.Errorf("release %s: %w: %s", d.image, err, strings.TrimSpace(d.said.String()))
		}
		if _, bad := os.Stat(d.Path); errors.Is(bad, unix.ENOTCONN) { // it was killed
			err = errors.Join(err, unix.Unmount(d.Path, unix.MNT_DETACH))
		}
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}
