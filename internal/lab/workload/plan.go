package workload

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
)

// class is what the crash may do to a file.
type class int

const (
	untouched class = iota // saved before Run, which leaves it alone
	synced                 // written and fsynced in Run
	unsaved                // written in Run, never synced
	renamed                // saved before Run under another name
	removed                // saved before Run, which removes it
	probe                  // the probe file: unsaved, and written last
)

// absent is the base size of a file that Run creates.
const absent = -1

// file is one file of the tree: what it is at first and what Run does to it.
type file struct {
	path  string
	was   string // its path before Run, if it is renamed
	mode  fs.FileMode
	class class
	base  int64  // bytes at first, or absent
	id    uint64 // first payload of the base content
	ops   []op
}

// Plan is a workload: the base tree and the operations on it. It holds no content.
type Plan struct {
	spec    Spec
	files   []*file
	unsaved int64
	tree    int64
}

// NewPlan works out the workload of a Spec; the same Spec gives the same Plan.
func NewPlan(spec Spec) (*Plan, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	b := &builder{rng: rand.New(rand.NewPCG(spec.Seed, 1))}
	b.unsavedFiles(spec)
	for i := range max(2, spec.Files/25) {
		b.untouchedFile(i)
		b.syncedFile(i)
		b.newFile(i)
		b.renamedFile(i)
		b.removedFile(i)
	}
	b.add(&file{path: ProbePath, mode: 0o644, class: probe, base: probeSize})
	b.write(opProbe, 0, probeSize)

	p := &Plan{spec: spec, files: b.files}
	for _, f := range p.files {
		p.unsaved += f.unsaved()
		if f.class != removed {
			p.tree += f.size()
		}
	}
	if p.unsaved < spec.UnsavedBytes {
		return nil, fmt.Errorf("plan workload: %d bytes planned, %d wanted", p.unsaved, spec.UnsavedBytes)
	}
	return p, nil
}

// Files is the number of files in the final tree.
func (p *Plan) Files() int {
	n := 0
	for _, f := range p.files {
		if f.class != removed {
			n++
		}
	}
	return n
}

// UnsavedFiles is how many files Run leaves unsaved, the probe file among them.
func (p *Plan) UnsavedFiles() int {
	n := 0
	for _, f := range p.files {
		if f.class == unsaved || f.class == probe {
			n++
		}
	}
	return n
}

// UnsavedBytes is the size of the pages that Run leaves unsaved, a file's last one counted up to the file's end.
func (p *Plan) UnsavedBytes() int64 { return p.unsaved }

// TreeBytes is the sum of the files' final sizes, holes included.
func (p *Plan) TreeBytes() int64 { return p.tree }

// size is the file's final size in bytes.
func (f *file) size() int64 {
	size := max(f.base, 0)
	for _, o := range f.ops {
		size = o.sizeAfter(size)
	}
	return size
}

// unsaved counts the bytes of the pages that Run dirties and that are left in the end.
func (f *file) unsaved() int64 {
	if f.class != unsaved && f.class != probe {
		return 0
	}
	dirty := map[int64]bool{}
	for _, o := range f.ops {
		if o.kind == opTruncate {
			for page := range dirty {
				if page*PageSize >= o.off {
					delete(dirty, page)
				}
			}
			continue
		}
		for page := o.off / PageSize; page*PageSize < o.off+o.len; page++ {
			dirty[page] = true
		}
	}
	var n int64
	size := f.size()
	for page := range dirty {
		n += min(PageSize, size-page*PageSize)
	}
	return n
}
