package barelab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/live/dirs"
)

// rootOffset is where the partition begins on a disk of scripts/debian.sh, bytes.
const rootOffset = 2048 * 512

// File is a file to be put on a disk. One that is executable has what chmod(1) calls 755,
// others 644.
type File struct {
	Path, Source string
	Executable   bool
}

// Debian makes a root disk at path: a copy of that which scripts/debian.sh makes with a
// kernel, named as there, and files. The machine runs /lab, a script of sh, at each boot, if
// it is there.
func Debian(path, kernel string, files []File) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find scripts: %w", err)
	}
	script := filepath.Join(strings.TrimSpace(string(root)), "scripts", "debian.sh")
	if out, err := exec.Command(script, kernel).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	cache, err := dirs.Cache()
	if err != nil {
		return err
	}
	_, modules, err := dirs.Kernel(filepath.Join(cache, "kernels", kernel))
	if err != nil {
		return err
	}
	disk := filepath.Join(cache, "debian", filepath.Base(modules)+".img")
	if out, err := exec.Command("cp", "--sparse=always", disk, path).CombinedOutput(); err != nil {
		return fmt.Errorf("copy disk: %w: %s", err, out)
	}
	return put(path, files)
}

// put writes files on a disk of Debian's.
func put(disk string, files []File) error {
	var commands strings.Builder
	for _, f := range files {
		mode := "0100644"
		if f.Executable {
			mode = "0100755"
		}
		fmt.Fprintf(&commands, "write %s %s\nset_inode_field %[2]s mode %[3]s\n", f.Source, f.Path, mode)
	}
	cmd := exec.Command("debugfs", "-w", "-f", "/dev/stdin", fmt.Sprintf("%s?offset=%d", disk, rootOffset))
	cmd.Stdin = strings.NewReader(commands.String())
	out, err := cmd.CombinedOutput()
	if err == nil && strings.Contains(string(out), "No such file") || strings.Contains(string(out), "while ") {
		err = fmt.Errorf("debugfs said")
	}
	if err != nil {
		return fmt.Errorf("put files on %s: %w: %s", disk, err, out)
	}
	return nil
}

// Root takes the file system out of a disk of Debian's, to be looked at.
func Root(disk, path string) error {
	out, err := exec.Command("dd", "if="+disk, "of="+path, "bs=1M", "skip=1", "conv=sparse", "status=none").CombinedOutput()
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return fmt.Errorf("take the root file system out of %s: %w: %s", disk, err, out)
	}
	return nil
}
