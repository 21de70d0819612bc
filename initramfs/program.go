package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// libraryDirs are where the dynamic linker of Debian, and that of others, looks
// for libraries without being told (ld.so(8)).
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// Program is a copy of a dynamically linked executable of this machine, at the
// same path, with its linker and all the libraries that it names.
func Program(path string) ([]File, error) {
	var files []File
	var taken []string
	for queue := []string{path}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if slices.Contains(taken, at) {
			continue
		}
		taken = append(taken, at)
		needs, err := linked(at)
		if err != nil {
			return nil, &Error{"add program " + path, err, "install the package that has it"}
		}
		files = append(files, Copy(at, at, 0o755))
		queue = append(queue, needs...)
	}
	return files, nil
}

// linked returns the paths of the files that an executable or a library needs:
// its interpreter and its libraries.
func linked(path string) ([]string, error) {
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
		out = append(out, filepath.Clean(string(b[:max(0, len(b)-1)]))) // it ends with a zero byte
	}
	names, err := f.ImportedLibraries()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return nil, fmt.Errorf("read libraries of %s: %w", path, err)
	}
	for _, name := range names {
		at, err := findLibrary(name)
		if err != nil {
			return nil, fmt.Errorf("%w, which %s needs", err, path)
		}
		out = append(out, at)
	}
	return out, nil
}

// findLibrary returns the path of a library for this machine.
func findLibrary(name string) (string, error) {
	for _, dir := range libraryDirs {
		at := filepath.Join(dir, name)
		f, err := elf.Open(at)
		if err != nil {
			continue
		}
		fits := f.Machine == elf.EM_X86_64
		f.Close()
		if fits {
			return at, nil
		}
	}
	return "", fmt.Errorf("no library %s", name)
}
