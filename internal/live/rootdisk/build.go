package rootdisk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/live/hint"
)

// System is a Debian system to build.
type System struct {
	Suite    string // bookworm
	Packages []string
	Size     int64 // of the image, bytes
	Hostname string
}

// needed are the packages that a partition's system cannot do without. The kernel is Debian's for guests.
var needed = []string{"systemd-sysv", "udev", "kmod", "iproute2", "procps", "e2fsprogs", "initramfs-tools", "linux-image-cloud-amd64"}

// Build makes an image with one file system and a system on it, at a path where nothing exists yet:
// the complete image, or nothing. It takes minutes; out gets the output of the programs that it runs.
func Build(ctx context.Context, file string, s System, out io.Writer) (err error) {
	if _, err := os.Lstat(file); err == nil {
		return hint.New("build "+file, os.ErrExist, "Name another file, or remove it.")
	}
	dir, err := os.MkdirTemp(filepath.Dir(file), ".understudy-build-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tree, draft := filepath.Join(dir, "root"), filepath.Join(dir, "image")
	packages := strings.Join(append(needed[:len(needed):len(needed)], s.Packages...), ",")
	err = program(ctx, out, "mmdebstrap", "--variant=minbase", "--mode=root", "--include="+packages, s.Suite, tree)
	if err != nil {
		return hint.New("make a system", err, "Install mmdebstrap, and run this as root, with a network.")
	}
	if err := furnish(tree, s.Hostname); err != nil {
		return err
	}
	if err := sized(draft, s.Size); err != nil {
		return err
	}
	if err := program(ctx, out, "mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, draft); err != nil {
		return hint.New("make the file system", err, "Give --size more, if there was no room; mke2fs is of e2fsprogs.")
	}
	if err := synced(draft); err != nil {
		return err
	}
	return os.Rename(draft, file)
}

// synced syncs a file that others have written.
func synced(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// furnish writes the files of a new system that differ from one system to another.
func furnish(tree, hostname string) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	return errors.Join(
		replace(root, "etc/hostname", []byte(hostname+"\n"), 0o644, ""),
		replace(root, "etc/hosts", []byte("127.0.0.1 localhost "+hostname+"\n::1 localhost\n"), 0o644, ""),
		replace(root, fstabPath, []byte("LABEL=root / ext4 defaults 0 1\n"), 0o644, ""),
	)
}

// sized makes an empty file of that size.
func sized(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func program(ctx context.Context, out io.Writer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w", name, err)
	}
	return nil
}
