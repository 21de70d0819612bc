package kernel

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// maxCandidates bounds how many notes are examined. One is right; a rebooted
// or a nested machine leaves a few more.
const maxCandidates = 64

// Option is an option of Find.
type Option func(*finder)

// KeepIn makes Find use what Keep wrote to this directory about other boots of the
// same build.
func KeepIn(dir string) Option { return func(f *finder) { f.keep = dir } }

// finder is one search for a kernel.
type finder struct {
	mem  ram.Memory
	keep string          // directory of memos; empty means that none are kept
	seen []*architecture // of the notes that were found
}

// Find finds the kernel in a machine's memory by its VMCOREINFO note: the one that
// the memory's file has, or else one in memory. The kernel is verified against what
// the note says. Of several verified kernels Find returns the newest that died.
func Find(mem ram.Memory, options ...Option) (*Kernel, error) {
	f := &finder{mem: mem}
	for _, option := range options {
		option(f)
	}
	if file, ok := mem.(ram.Unarranged); ok {
		return f.arranged(file)
	}
	return f.find()
}

// find finds the kernel in memory whose arrangement is settled.
func (f *finder) find() (*Kernel, error) {
	k, broughtErr := f.brought()
	if broughtErr == nil {
		return k, nil
	}
	notes := scan(f.mem, notesOnPages)
	if len(notes) == 0 {
		notes = scan(f.mem, notesAnywhere)
	}
	var found []*Kernel
	var errs []error
	if len(notes) == 0 {
		errs = append(errs, strange(f.mem))
	}
	for _, pa := range notes[:min(len(notes), maxCandidates)] {
		k, err := f.at(pa)
		if err != nil {
			errs = append(errs, fmt.Errorf("note at %v: %w", pa, err))
			continue
		}
		found = append(found, k)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if !errors.Is(broughtErr, errNoNote) {
			errs = append(errs, broughtErr)
		}
		return nil, fmt.Errorf("find kernel: %w", errors.Join(append([]error{ErrNoKernel}, errs...)...))
	default:
		return newest(found)
	}
}

var errNoNotes = errors.New("there is no VMCOREINFO note; Linux has one if it was built with CONFIG_PROC_KCORE, or for kdump")

var errNoNote = errors.New("the file has no note")

// brought opens the kernel that the memory's file describes, which saves searching
// all memory, and decoding it if it is compressed.
func (f *finder) brought() (*Kernel, error) {
	noted, ok := f.mem.(ram.Noted)
	if !ok {
		return nil, errNoNote
	}
	text, ok := noted.VMCoreInfo()
	if !ok {
		return nil, errNoNote
	}
	n, err := parseNote(text)
	if err != nil {
		return nil, fmt.Errorf("note of the file: %w", err)
	}
	k, err := f.open(n, 0)
	if err == nil && k.dumps() {
		err = errors.New("it is of a kdump kernel, loaded to dump another")
	}
	if err != nil {
		return nil, fmt.Errorf("note of the file: %w", err)
	}
	return k, nil
}

// at opens the kernel of the note at pa.
func (f *finder) at(pa addr.Phys) (*Kernel, error) {
	n, err := readNote(f.mem, pa)
	if err != nil {
		return nil, err
	}
	f.seen = append(f.seen, n.arch)
	return f.open(n, pa)
}

// readNote reads and parses the note at pa.
func readNote(mem ram.Memory, pa addr.Phys) (*note, error) {
	head, err := mem.View(pa, noteTextOffset)
	if err != nil {
		return nil, err
	}
	size, ok := noteTextSize(head)
	if !ok {
		return nil, errors.New("no VMCOREINFO note there")
	}
	text, err := mem.View(pa+noteTextOffset, size)
	if err != nil {
		return nil, err
	}
	return parseNote(text)
}
