package initramfs

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"understudy.dev/understudy/internal/live/hint"
)

// Spec is the content of an image.
type Spec struct {
	Init       string   // path of a statically linked executable, which becomes /init
	ModulesDir string   // an unpacked lib/modules/RELEASE; unused if Modules is empty
	Modules    []string // names of modules to load, in this order, without their dependencies
	Files      []File   // everything else, in any order
}

// File is one entry of an image. Use Link, Copy or Text to make one.
type File struct {
	Path   string      // absolute path in the guest
	Mode   fs.FileMode // permissions, with fs.ModeDir or fs.ModeSymlink
	Source string      // path of a file here that has the content
	Data   []byte      // the content, or a link's target, if Source is empty
}

// directory is a directory, whether it is empty or not.
func directory(path string, perm fs.FileMode) File {
	return File{Path: path, Mode: fs.ModeDir | perm.Perm()}
}

// Link is a symbolic link at path to target.
func Link(path, target string) File {
	return File{Path: path, Mode: fs.ModeSymlink | 0o777, Data: []byte(target)}
}

// Copy is a copy of the local file source.
func Copy(path, source string, perm fs.FileMode) File {
	return File{Path: path, Mode: perm.Perm(), Source: source}
}

// Text is a file with the given content.
func Text(path, content string, perm fs.FileMode) File {
	return File{Path: path, Mode: perm.Perm(), Data: []byte(content)}
}

// Distinct leaves out repeated copies of the same source to the same path: programs
// share libraries.
func Distinct(files []File) []File {
	var out []File
	sources := make(map[string]string)
	for _, f := range files {
		if f.Source != "" && sources[f.Path] == f.Source {
			continue
		}
		sources[f.Path] = f.Source
		out = append(out, f)
	}
	return out
}

// build writes the image to w. Nothing is written if an input is missing or
// unfit; a *hint.Error says which one and what to do.
func build(w io.Writer, spec Spec) error {
	files, err := entries(spec)
	if err != nil {
		return err
	}
	out := cpio.Newc.Writer(w)
	for i, f := range files {
		if err := writeEntry(out, uint64(i+1), f); err != nil {
			return hint.New("add "+f.Path, err, "")
		}
	}
	if err := cpio.WriteTrailer(out); err != nil {
		return fmt.Errorf("end image: %w", err)
	}
	return nil
}

// WriteFile builds the image at path: complete and on disk, or not at all.
func WriteFile(path string, spec Spec) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	defer func() {
		if err != nil {
			tmp.Close()
			os.Remove(tmp.Name())
		}
	}()
	buf := bufio.NewWriterSize(tmp, 1<<20)
	if err := build(buf, spec); err != nil {
		return fmt.Errorf("write image %s: %w", path, err)
	}
	if err := errors.Join(buf.Flush(), tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// entries returns all entries of the image sorted by path, so that a
// directory comes before what is in it.
func entries(spec Spec) ([]File, error) {
	if err := checkInit(spec.Init); err != nil {
		return nil, err
	}
	all := append([]File{Copy("/init", spec.Init, 0o755)}, spec.Files...)
	modules, err := ModuleOrder(spec.ModulesDir, spec.Modules)
	if err != nil {
		return nil, err
	}
	var order strings.Builder
	for _, m := range modules {
		order.WriteString(path.Base(m.Path) + "\n")
	}
	all = append(append(all, modules...), Text(orderFile, order.String(), 0o644))

	byPath := make(map[string]File)
	for _, f := range all {
		if err := checkFile(f); err != nil {
			return nil, err
		}
		if _, ok := byPath[f.Path]; ok {
			return nil, hint.New("add "+f.Path, errors.New("given twice"), "Remove one of the two.")
		}
		byPath[f.Path] = f
	}
	for _, f := range all {
		for dir := path.Dir(f.Path); dir != "/"; dir = path.Dir(dir) {
			parent, ok := byPath[dir]
			if !ok {
				byPath[dir] = directory(dir, 0o755)
			} else if !parent.Mode.IsDir() {
				return nil, hint.New("add "+f.Path, fmt.Errorf("%s is not a directory", dir), "Move one of the two.")
			}
		}
	}
	sorted := make([]File, 0, len(byPath))
	for _, f := range byPath {
		sorted = append(sorted, f)
	}
	slices.SortFunc(sorted, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return sorted, nil
}

// checkInit refuses an executable that the guest's kernel could not run as its
// only program: one that asks for a dynamic linker.
func checkInit(name string) error {
	op := "use " + name + " as /init"
	const advice = "Build it with CGO_ENABLED=0 (make build)."
	f, err := elf.Open(name)
	if err != nil {
		return hint.New(op, err, advice)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return hint.New(op, errors.New("it is dynamically linked"), advice)
		}
	}
	return nil
}

// checkFile refuses entries that do not make sense.
func checkFile(f File) error {
	op := "add " + f.Path
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
		return hint.New(op, errors.New("not a clean absolute path"), "Write it like /etc/hosts.")
	}
	if f.Mode.Type()&^(fs.ModeDir|fs.ModeSymlink) != 0 {
		return hint.New(op, fmt.Errorf("unsupported type %v", f.Mode.Type()), "Let /init make it.")
	}
	if f.Source == "" {
		return nil
	}
	st, err := os.Stat(f.Source)
	if err != nil {
		return hint.New(op, err, "Install or build what provides it.")
	}
	if !st.Mode().IsRegular() {
		return hint.New(op, fmt.Errorf("%s is not a regular file", f.Source), "Name a file.")
	}
	return nil
}

// writeEntry appends one record. Times and owners are zero and inode numbers
// count up, so that equal inputs give equal images.
func writeEntry(out cpio.RecordWriter, inode uint64, f File) error {
	info := cpio.Info{Name: strings.TrimPrefix(f.Path, "/"), Ino: inode, NLink: 1, Mode: uint64(f.Mode.Perm())}
	switch {
	case f.Mode.IsDir():
		info.Mode |= cpio.S_IFDIR
		return out.WriteRecord(cpio.Record{Info: info})
	case f.Mode&fs.ModeSymlink != 0:
		info.Mode |= cpio.S_IFLNK
	default:
		info.Mode |= cpio.S_IFREG
	}
	if f.Source == "" {
		info.FileSize = uint64(len(f.Data))
		return out.WriteRecord(cpio.Record{ReaderAt: bytes.NewReader(f.Data), Info: info})
	}
	src, err := os.Open(f.Source)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	info.FileSize = uint64(st.Size())
	return out.WriteRecord(cpio.Record{ReaderAt: src, Info: info})
}
