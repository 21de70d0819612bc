package workload

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
)

// Prepare makes the base tree in dir, which must not hold any of its files yet, and calls emit for every file of the
// final tree, the probe file last, before anything of that exists. The caller sends the records away and calls
// sync(2). The memory used is that of the largest file. An error of emit ends it.
func (p *Plan) Prepare(dir string, emit func(Truth) error) error {
	base, run := newPool(p.spec.Seed, baseSide), newPool(p.spec.Seed, runSide)
	sum := newSummer()
	var model []byte
	for _, f := range p.files {
		model = model[:0]
		if f.class == probe {
			model = append(model, probeText(p.spec.Seed, baseSide)...)
		} else {
			model = base.fill(model, f.id, f.base)
		}
		if err := f.create(dir, model); err != nil {
			return fmt.Errorf("prepare workload: %w", err)
		}
		if f.class == removed {
			continue
		}
		for _, o := range f.ops {
			model = o.applyTo(model, p.payload(run, o))
		}
		t := Truth{Path: f.path, Mode: f.mode, Synced: f.class == untouched || f.class == synced}
		sum.add(model)
		sum.finish(&t)
		if err := emit(t); err != nil {
			return fmt.Errorf("prepare workload: record %s: %w", f.path, err)
		}
	}
	return nil
}

// create makes the file's directory and, unless Run is to create it, the file.
func (f *file) create(dir string, content []byte) error {
	if f.class == unsaved && f.base == absent {
		return nil // Run makes its directory, too
	}
	path := filepath.Join(dir, cmp.Or(f.was, f.path))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if f.base == absent {
		return nil
	}
	h, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Chmod(f.mode); err != nil { // whatever the umask
		return err
	}
	if _, err := h.Write(content); err != nil {
		return err
	}
	return h.Close()
}

// Run changes the tree that Prepare made in dir. The synced class comes first, because an fsync commits the
// journal with everything that is in it; from then on nothing is synced. The caller makes sure that the kernel
// does not commit by itself. The probe file is last: a reader of its new content knows that Run is done.
func (p *Plan) Run(dir string) error {
	run := newPool(p.spec.Seed, runSide)
	for _, c := range []class{synced, unsaved, renamed, removed, probe} {
		for _, f := range p.files {
			if f.class != c {
				continue
			}
			if err := p.change(dir, f, run); err != nil {
				return fmt.Errorf("run workload: %w", err)
			}
		}
	}
	return nil
}

// change does a file's operations.
func (p *Plan) change(dir string, f *file, run *pool) error {
	path := filepath.Join(dir, f.path)
	if f.class == removed {
		return os.Remove(path)
	}
	if f.class == renamed || f.base == absent {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
	}
	if f.class == renamed {
		return os.Rename(filepath.Join(dir, f.was), path)
	}
	flags := os.O_RDWR
	if f.base == absent {
		flags |= os.O_CREATE | os.O_EXCL
	}
	h, err := os.OpenFile(path, flags, f.mode)
	if err != nil {
		return err
	}
	defer h.Close()
	if f.base == absent {
		if err := h.Chmod(f.mode); err != nil { // whatever the umask
			return err
		}
	}
	for _, o := range f.ops {
		if err := o.applyToFile(h, p.payload(run, o)); err != nil {
			return fmt.Errorf("change %s: %w", f.path, err)
		}
	}
	if f.class == synced {
		if err := f.sync(h, path); err != nil {
			return err
		}
	}
	return h.Close()
}

// sync makes the file durable, and its name if it is new.
func (f *file) sync(h *os.File, path string) error {
	if f.base != absent {
		return h.Sync()
	}
	if err := h.Sync(); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
