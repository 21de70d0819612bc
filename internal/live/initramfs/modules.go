package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/hint"
)

// orderFile is where the guest finds the names of its module files, one a
// line, each after the ones it depends on.
const orderFile = "/lib/modules/order"

// maxModinfo bounds the .modinfo section we are willing to read, in bytes; the
// longest ones are lists of device aliases of some ten KiB.
const maxModinfo = 4 << 20

// moduleTree is an unpacked lib/modules/RELEASE directory.
type moduleTree struct {
	dir     string
	files   map[string]string // module name to the path of its file
	builtin map[string]bool   // names of modules that are part of the kernel
}

// ModuleOrder returns the module files that names need, as they are in an image: uncompressed,
// each after its dependencies and without repetition. Built-in modules need no
// file. dir is an unpacked lib/modules/RELEASE; depmod need not have been run
// on it. A name may be spelled with - or _ and names a module, not an alias. Of
// several names with | between them, the first that exists is taken; if nothing is
// behind the last |, none of them need exist.
func ModuleOrder(dir string, names []string) ([]File, error) {
	if len(names) == 0 {
		return nil, nil
	}
	tree, err := openModuleTree(dir)
	if err != nil {
		return nil, err
	}
	var order []File
	state := make(map[string]int)
	for _, name := range names {
		chosen := tree.first(name)
		if chosen == "" {
			continue
		}
		if order, err = tree.visit(order, state, chosen, ""); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// first returns the first of some alternatives that exists. If there is none, it returns
// the first name, or an empty one if none of them need exist.
func (t *moduleTree) first(names string) string {
	all := strings.Split(names, "|")
	for _, n := range all {
		if n = moduleName(n); n == "" || t.builtin[n] || t.files[n] != "" {
			return n
		}
	}
	return moduleName(all[0])
}

// The states of a module in visit.
const (
	unseen = iota
	open   // its dependencies are being visited
	placed
)

// visit appends to order what name needs and then name itself.
func (t *moduleTree) visit(order []File, state map[string]int, name, neededBy string) ([]File, error) {
	if t.builtin[name] || state[name] == placed {
		return order, nil
	}
	op := "resolve module " + name
	if neededBy != "" {
		op += " (needed by " + neededBy + ")"
	}
	if state[name] == open {
		return nil, hint.New(op, errors.New("depends on itself"), "Unpack the kernel package again.")
	}
	path, ok := t.files[name]
	if !ok {
		return nil, hint.New(op, fmt.Errorf("neither built in nor a file below %s", t.dir),
			"Check the spelling, or use a kernel package that has it.")
	}
	state[name] = open
	file, depends, err := readModule(path)
	if err != nil {
		return nil, err
	}
	for _, dep := range depends {
		if order, err = t.visit(order, state, dep, name); err != nil {
			return nil, err
		}
	}
	state[name] = placed
	return append(order, file), nil
}

// openModuleTree indexes the modules below dir by name.
func openModuleTree(dir string) (*moduleTree, error) {
	const advice = "Give the lib/modules/RELEASE directory of an unpacked kernel package (scripts/setup.sh makes one)."
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, hint.New("read modules of "+dir, err, advice)
	}
	t := &moduleTree{dir: dir, files: make(map[string]string), builtin: make(map[string]bool)}
	for line := range strings.Lines(string(list)) {
		t.builtin[moduleName(filepath.Base(strings.TrimSpace(line)))] = true
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !isModule(d.Name()) {
			return err
		}
		name := moduleName(d.Name())
		if old, ok := t.files[name]; !ok || t.rank(path) < t.rank(old) {
			t.files[name] = path
		}
		return nil
	})
	if err != nil {
		return nil, hint.New("read modules of "+dir, err, advice)
	}
	return t, nil
}

// moduleName returns the kernel's own name for a module, given its file or its name as
// people write it: no suffix, and _ for - (KBUILD_MODNAME, scripts/Makefile.lib).
func moduleName(s string) string {
	s, _, _ = strings.Cut(s, ".ko")
	return strings.ReplaceAll(s, "-", "_")
}

// rank orders the files of one module as depmod does: the file with the lowest rank is taken.
// Replacements of modules are in updates/ (depmod.d(5): it is searched first by default) or
// extra/, and modules lent from another release are in weak-updates/ (Fedora's
// /usr/lib/depmod.d/dist.conf: "search updates extra built-in weak-updates").
func (t *moduleTree) rank(path string) int {
	below := strings.TrimPrefix(path, filepath.Clean(t.dir)+"/")
	top, _, _ := strings.Cut(below, "/")
	if i := slices.Index([]string{"updates", "extra", "", "weak-updates"}, top); i >= 0 {
		return i
	}
	return 2
}

// readModule returns a module file as it is in an image, and the names of the modules that it
// depends on, as modpost recorded them.
func readModule(path string) (f File, depends []string, err error) {
	defer func() {
		if err != nil {
			err = hint.New("read module "+path, err, "Unpack the kernel package again.")
		}
	}()
	base, suffix, _ := strings.Cut(filepath.Base(path), ".ko")
	in, err := os.Open(path)
	if err != nil {
		return File{}, nil, err
	}
	defer in.Close()
	f = Copy("/lib/modules/"+base+".ko", path, 0o644)
	var plain io.ReaderAt = in
	if by := unpackers[suffix]; by != nil {
		b, err := unpack(in, by, maxModule)
		if err != nil {
			return File{}, nil, err
		}
		f.Source, f.Data, plain = "", b, bytes.NewReader(b)
	}
	info, err := modinfo(plain)
	return f, parseDepends(info), err
}

// modinfo returns the .modinfo section of a module.
func modinfo(module io.ReaderAt) ([]byte, error) {
	f, err := elf.NewFile(module)
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil || section.Size > maxModinfo {
		return nil, errors.New("no sane .modinfo section")
	}
	return section.Data()
}

// parseDepends returns the names in the depends= entries of a .modinfo
// section: strings "key=value", each ended by NULs (include/linux/moduleparam.h,
// __MODULE_INFO), the value a comma-separated list (scripts/mod/modpost.c,
// add_depends).
func parseDepends(modinfo []byte) []string {
	var names []string
	for entry := range bytes.SplitSeq(modinfo, []byte{0}) {
		value, ok := bytes.CutPrefix(entry, []byte("depends="))
		if !ok {
			continue
		}
		for name := range strings.SplitSeq(string(value), ",") {
			if name = moduleName(name); name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}
