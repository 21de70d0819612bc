package oracle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// toolsSize is the size of the disk with the programs and what they work on.
const toolsSize = 256 << 20 // bytes

// toolsMade is whether there is anything to clean up.
var toolsMade atomic.Bool

// toolsDisk makes the disk with the programs of this machine, once: a root
// directory with them, their libraries, and what they work on.
var toolsDisk = sync.OnceValues(func() (string, error) {
	toolsMade.Store(true)
	dir, err := os.MkdirTemp("", "understudy-oracle-tools-")
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "root")
	for _, f := range []func(string) error{makeRoot, copyPrograms, makeTar, makeRepository, makePackages} {
		if err := f(root); err != nil {
			return "", fmt.Errorf("make programs' disk: %w", err)
		}
	}
	image := filepath.Join(dir, "tools.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(image, toolsSize); err != nil {
		return "", err
	}
	if err := execute("", "mkfs.ext4", "-qF", "-b", "4096", "-O", "^has_journal", "-d", root, image); err != nil {
		return "", err
	}
	return image, os.RemoveAll(root)
})

// execute runs a command in a directory.
func execute(dir string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=o", "GIT_AUTHOR_EMAIL=o@example.com", "GIT_COMMITTER_NAME=o",
		"GIT_COMMITTER_EMAIL=o@example.com", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}

func makeRoot(root string) error {
	for _, dir := range []string{"bin", "disk", "proc", "dev", "tmp", "etc", "usr/bin", "usr/lib/git-core", "debs"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"sh", "mkdir", "touch", "rm", "diff", "cat", "ldconfig", "start-stop-daemon"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"git", "git-upload-pack", "git-index-pack"} {
		if err := os.Symlink("../../bin/git", filepath.Join(root, "usr/lib/git-core", name)); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644),
		os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\n"), 0o644))
}

// programs are those that are taken from this machine; Debian's packages sqlite3,
// git, tar, dpkg and busybox-static have them.
var programs = []string{"sqlite3", "git", "tar", "dpkg", "dpkg-deb", "dpkg-split", "busybox"}

// copyPrograms copies programs, and the libraries that they need.
func copyPrograms(root string) error {
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		to := filepath.Join(root, "usr/bin", name)
		if name == "busybox" {
			to = filepath.Join(root, "bin", name)
		}
		if err := copyFile(path, to); err != nil {
			return err
		}
		out, err := exec.Command("ldd", path).CombinedOutput()
		if err != nil && !bytes.Contains(out, []byte("not a dynamic executable")) {
			return fmt.Errorf("ldd %s: %w: %s", path, err, out)
		}
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") && strings.Contains(word, ".so") {
				if err := copyFile(word, filepath.Join(root, word)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func copyFile(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// sources are directories of Go's own source tree, which exists wherever this is
// compiled: some 600 files, 8 MiB in all.
var sources = []string{"archive", "bufio", "bytes", "compress", "crypto", "encoding", "go", "html", "image", "math", "net", "os", "text"}

// copySources puts a source tree into a directory.
func copySources(dir string, parts []string) error {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	from := filepath.Join(strings.TrimSpace(string(out)), "src")
	for _, part := range parts {
		err := filepath.WalkDir(filepath.Join(from, part), func(path string, d fs.DirEntry, err error) error {
			// Without the tests, which are too many.
			if err != nil || !d.Type().IsRegular() || strings.Contains(path, "test") || !strings.HasSuffix(path, ".go") {
				return err
			}
			return copyFile(path, filepath.Join(dir, path[len(from):]))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// makeTar makes src.tar.
func makeTar(root string) error {
	dir, err := os.MkdirTemp("", "understudy-oracle-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := copySources(filepath.Join(dir, "src"), sources); err != nil {
		return err
	}
	return execute(dir, "tar", "--owner=1000", "--group=1000", "-cf", filepath.Join(root, "src.tar"), "src")
}

// makeRepository makes src.git, with a commit for each part of the sources.
func makeRepository(root string) error {
	dir, err := os.MkdirTemp("", "understudy-oracle-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := execute(dir, "git", "init", "-q", "-b", "main"); err != nil {
		return err
	}
	for _, part := range sources[:8] {
		err := copySources(dir, []string{part})
		if err == nil {
			err = execute(dir, "git", "add", "-A")
		}
		if err == nil {
			err = execute(dir, "git", "commit", "-qm", part)
		}
		if err != nil {
			return err
		}
	}
	return execute(dir, "git", "clone", "-q", "--bare", dir, filepath.Join(root, "src.git"))
}

// makePackages makes a package of each part of the sources.
func makePackages(root string) error {
	dir, err := os.MkdirTemp("", "understudy-oracle-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, part := range sources[:8] {
		at := filepath.Join(dir, part)
		if err := copySources(filepath.Join(at, "usr/share/oracle"), []string{part}); err != nil {
			return err
		}
		control := fmt.Sprintf("Package: oracle-%s\nVersion: 1\nArchitecture: all\nMaintainer: o <o@example.com>\nDescription: sources\n", part)
		if err := os.MkdirAll(filepath.Join(at, "DEBIAN"), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(at, "DEBIAN/control"), []byte(control), 0o644); err != nil {
			return err
		}
		if err := execute(at, "sh", "-c", "find usr -type f -exec md5sum {} + >DEBIAN/md5sums"); err != nil {
			return err
		}
		if err := execute(at, "dpkg-deb", "--root-owner-group", "-Zgzip", "-b", ".", filepath.Join(root, "debs", part+".deb")); err != nil {
			return err
		}
	}
	return nil
}
