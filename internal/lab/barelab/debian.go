package barelab

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/live/dirs"
)

// rootOffset is where the partition begins on a disk that scripts/debian.sh makes, in bytes.
const rootOffset = 2048 * 512

// File is a file to be put on a disk. Its mode is 755 (chmod(1)) if it is executable, and
// 644 otherwise.
type File struct {
	Path, Source string
	Executable   bool
}

// Kernel returns the release and the files of a further kernel for a Debian disk. The
// kernel is named as in scripts/kernels.sh, and the files are where its package has them.
func Kernel(name string) (release string, files []File, err error) {
	cache, err := dirs.Cache()
	if err != nil {
		return "", nil, err
	}
	image, modules, err := dirs.Kernel(filepath.Join(cache, "kernels", name))
	if err != nil {
		return "", nil, err
	}
	release = filepath.Base(modules)
	files = append(files, File{Path: "/boot/vmlinuz-" + release, Source: image})
	return release, files, filepath.WalkDir(modules, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, File{Path: "/usr/lib/modules/" + release + strings.TrimPrefix(path, modules), Source: path})
		}
		return err
	})
}

// Debian makes a root disk: a copy of the one that scripts/debian.sh makes of a Debian
// suite and a kernel, named as there, with files added. The machine runs /lab, an sh
// script, at each boot, if there is one.
func Debian(disk, suite, kernel string, files []File) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find scripts: %w", err)
	}
	script := filepath.Join(strings.TrimSpace(string(root)), "scripts", "debian.sh")
	cmd := exec.Command(script, suite, kernel)
	var said bytes.Buffer
	cmd.Stderr = &said
	made, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, &said)
	}
	if out, err := exec.Command("cp", "--sparse=always", strings.TrimSpace(string(made)), disk).CombinedOutput(); err != nil {
		return fmt.Errorf("copy disk: %w: %s", err, out)
	}
	return Put(disk, files)
}

// madeBefore are directories that every Debian disk has.
var madeBefore = []string{"/", "/boot", "/root", "/etc", "/etc/systemd", "/etc/systemd/system", "/usr/lib/modules", "/usr/local/bin"}

// Put writes files to a Debian disk that is not in use, at paths where there are none yet. It makes
// their directories.
func Put(disk string, files []File) error { return PutAt(disk, rootOffset, files) }

// PutAt is Put for a disk whose Debian file system begins at an offset, in bytes.
func PutAt(disk string, offset int64, files []File) error {
	var commands strings.Builder
	made := map[string]bool{}
	for _, dir := range madeBefore {
		made[dir] = true
	}
	var mkdir func(dir string)
	mkdir = func(dir string) {
		if made[dir] {
			return
		}
		mkdir(path.Dir(dir))
		made[dir] = true
		fmt.Fprintf(&commands, "mkdir %s\n", dir)
	}
	for _, f := range files {
		mkdir(path.Dir(f.Path))
		mode := "0100644"
		if f.Executable {
			mode = "0100755"
		}
		fmt.Fprintf(&commands, "write %s %s\nset_inode_field %[2]s mode %[3]s\n", f.Source, f.Path, mode)
	}
	cmd := exec.Command("debugfs", "-w", "-f", "/dev/stdin", fmt.Sprintf("%s?offset=%d", disk, offset))
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

// Root copies the file system out of a Debian disk to path, so that it can be looked at.
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
