package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/hint"
)

// libraryDirs are where the dynamic linkers of Debian and of other distributions
// look for libraries by default (ld.so(8)).
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// Program is a copy of a dynamically linked executable of this machine, at the
// same path, with its linker and all the libraries that it names.
func Program(path string) ([]File, error) { return Programs("", path) }

// Programs are copies of executables with the files that they need, each once. A
// file is taken from below root, where packages are unpacked, if it exists there,
// and otherwise from this machine. Its path in the guest is the one without root.
func Programs(root string, paths ...string) ([]File, error) {
	var files []File
	var taken []string
	for _, path := range paths {
		for queue := []string{path}; len(queue) > 0; queue = queue[1:] {
			at := queue[0]
			if slices.Contains(taken, at) {
				continue
			}
			taken = append(taken, at)
			source := below(root, at)
			needs, err := linked(root, source)
			if err != nil {
				return nil, hint.New("add program "+path, err, "Install the package that has it.")
			}
			files = append(files, Copy(at, source, 0o755))
			queue = append(queue, needs...)
		}
	}
	return files, nil
}

// Add is a copy of a file of this machine at the same path, with its permissions,
// and, if it is a program, with its linker and libraries.
func Add(path string) ([]File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, hint.New("add file "+path, err, "Correct the path.")
	}
	if dynamic(path) {
		return Program(path)
	}
	return []File{Copy(path, path, st.Mode().Perm())}, nil
}

// dynamic reports whether a file is an executable that asks for a dynamic linker.
func dynamic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false // any other file
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// below is the path that a file is taken from: below root, if it exists there.
func below(root, path string) string {
	if at := filepath.Join(root, path); root != "" {
		if _, err := os.Stat(at); err == nil {
			return at
		}
	}
	return path
}

// linked returns the paths in the guest of the files that an executable or a
// library needs: its interpreter and its libraries.
func linked(root, path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return nil, fmt.Errorf("read interpreter of %s: %w", path, err)
		}
		out = append(out, filepath.Clean(string(b[:max(0, len(b)-1)]))) // without its final zero byte
	}
	names, err := f.ImportedLibraries()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return nil, fmt.Errorf("read libraries of %s: %w", path, err)
	}
	own, err := f.DynString(elf.DT_RUNPATH)
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return nil, fmt.Errorf("read library path of %s: %w", path, err)
	}
	dirs := append(filepath.SplitList(strings.Join(own, ":")), libraryDirs...)
	for _, name := range names {
		at, err := findLibrary(root, dirs, name)
		if err != nil {
			return nil, fmt.Errorf("%w, which %s needs", err, path)
		}
		out = append(out, at)
	}
	return out, nil
}

// findLibrary returns the path in the guest of a library for this machine.
func findLibrary(root string, dirs []string, name string) (string, error) {
	for _, dir := range dirs {
		at := filepath.Join(dir, name)
		f, err := elf.Open(below(root, at))
		if err != nil {
			continue
		}
		fits := f.Machine == elf.EM_X86_64
		_ = f.Close() // only read
		if fits {
			return at, nil
		}
	}
	return "", fmt.Errorf("no library %s", name)
}
