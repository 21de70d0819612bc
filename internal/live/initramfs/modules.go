package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
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

// ModuleOrder returns the paths of the module files that names need, each
// after its dependencies and without repetition. Built-in modules need no
// file. dir is an unpacked lib/modules/RELEASE; it need not have been through
// depmod. A name may be spelled with - or _ and names a module, not an alias; of
// names with | between them, it is the first one that there is, and with none behind
// the last | there need not be any.
func ModuleOrder(dir string, names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	tree, err := openModuleTree(dir)
	if err != nil {
		return nil, err
	}
	var order []string
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

// first returns the first of some alternatives that there is; if there is none, that
// which is asked for, or nothing where that is allowed.
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
func (t *moduleTree) visit(order []string, state map[string]int, name, neededBy string) ([]string, error) {
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
	depends, err := readDepends(path)
	if err != nil {
		return nil, err
	}
	for _, dep := range depends {
		if order, err = t.visit(order, state, dep, name); err != nil {
			return nil, err
		}
	}
	state[name] = placed
	return append(order, path), nil
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
		if err != nil || d.IsDir() || !strings.Contains(d.Name(), ".ko") {
			return err
		}
		name := moduleName(d.Name())
		if old, ok := t.files[name]; ok {
			return fmt.Errorf("%s and %s are both module %s", old, path, name)
		}
		t.files[name] = path
		return nil
	})
	if err != nil {
		return nil, hint.New("read modules of "+dir, err, advice)
	}
	return t, nil
}

// moduleName returns the kernel's own name for a module file or a name as
// people write it: no suffix, and _ for - (KBUILD_MODNAME, scripts/Makefile.lib).
func moduleName(s string) string {
	s, _, _ = strings.Cut(s, ".ko")
	return strings.ReplaceAll(s, "-", "_")
}

// readDepends returns the names of the modules that the module file at path
// depends on, as modpost recorded them.
func readDepends(path string) ([]string, error) {
	op := "read module " + path
	if !strings.HasSuffix(path, ".ko") {
		return nil, hint.New(op, errors.New("compressed modules are not supported"),
			"Decompress it, or use a kernel package with plain .ko files.")
	}
	f, err := elf.Open(path)
	if err != nil {
		return nil, hint.New(op, err, "Unpack the kernel package again.")
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil || section.Size > maxModinfo {
		return nil, hint.New(op, errors.New("no sane .modinfo section"), "Unpack the kernel package again.")
	}
	info, err := section.Data()
	if err != nil {
		return nil, hint.New(op, err, "Unpack the kernel package again.")
	}
	return parseDepends(info), nil
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
