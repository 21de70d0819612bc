package extract

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"understudy.dev/understudy/dead/inventory"
)

// partial is where files are until all of them are durable.
const partial = ".partial"

// ErrNotEmpty says that an output directory has something in it.
var ErrNotEmpty = errors.New("directory is not empty: choose one that is empty or does not exist")

// Dir is a directory to extract to. Until Finish, everything lies in .partial.
type Dir struct {
	path   string
	made   bool // by us
	root   *os.Root
	stage  *os.Root // .partial
	owners bool     // owners can be set
	mu     sync.Mutex
	known  map[string]bool // directories that were made
	open   map[string]*opened
	tops   map[string]bool
	ended  bool
}

// opened is a directory that files are being put into, or were a moment ago.
type opened struct {
	outputDir
	users int
}

// maxOpened bounds how many directories stay open without a user.
const maxOpened = 16

// NewDir creates a directory, or takes an empty one. What is extracted may be secret, or
// programs with the set-user-ID bit: a directory created here is for its owner only.
func NewDir(dir string) (*Dir, error) {
	d := &Dir{path: dir, owners: os.Geteuid() == 0, known: map[string]bool{".": true}, tops: make(map[string]bool)}
	d.open = make(map[string]*opened)
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(dir)), 0o755); err != nil {
		return nil, fmt.Errorf("make output directory: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make output directory: %w", err)
	}
	d.made = err == nil
	inside, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open output directory: %w", err)
	}
	for _, e := range inside {
		if e.Name() != "lost+found" { // of a fresh file system
			return nil, fmt.Errorf("extract to %s: %w", dir, ErrNotEmpty)
		}
	}
	if d.root, err = os.OpenRoot(dir); err != nil {
		return nil, fmt.Errorf("open output directory: %w", err)
	}
	if err = d.root.Mkdir(partial, 0o700); err == nil {
		d.stage, err = d.root.OpenRoot(partial)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make output directory: %w", err), d.Abort())
	}
	return d, nil
}

// Parallel implements Sink.
func (d *Dir) Parallel() int { return 4 }

// OwnersKept reports whether files keep their owners: only root can set them.
func (d *Dir) OwnersKept() bool { return d.owners }

// Put implements Sink.
func (d *Dir) Put(name string, f *inventory.File, body Body) error {
	dir, base := path.Dir(name), path.Base(name)
	at, err := d.enter(name, dir)
	if err != nil {
		return advise("make directory of", name, err)
	}
	defer d.leave(at)
	mode := f.Mode & 0o777
	if d.owners {
		mode = f.Mode & 0o7777
	}
	owned := !d.owners || at.owns(f.UID, f.GID)
	ready := owned && at.allows(mode) // as soon as it is created
	created := mode
	if !ready {
		created = 0o600
	}
	out, err := at.create(base, created)
	if err != nil {
		return advise("create", name, err)
	}
	err = d.fill(out, f, body)
	// The owner first: setting it clears the set-user-ID bit.
	if err == nil && !owned {
		err = out.chown(f.UID, f.GID)
	}
	if err == nil && !ready {
		err = out.chmod(mode)
	}
	if err = errors.Join(err, out.close()); err == nil {
		err = at.chtimes(base, f.Atime, f.Mtime)
	}
	if err != nil {
		return advise("write", name, errors.Join(err, d.stage.Remove(name)))
	}
	return nil
}

// enter makes and opens the directory of a name.
func (d *Dir) enter(name, dir string) (*opened, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at := d.open[dir]; at != nil {
		at.users++
		return at, nil
	}
	if err := d.dirs(name); err != nil {
		return nil, err
	}
	for other, at := range d.open {
		if at.users == 0 && len(d.open) >= maxOpened {
			delete(d.open, other)
			_ = at.close() // it was only looked into
		}
	}
	at, err := openOutputDir(d.stage, dir)
	if err != nil {
		return nil, err
	}
	d.open[dir] = &opened{at, 1}
	return d.open[dir], nil
}

func (d *Dir) leave(at *opened) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at.users--
}

// closeAll closes the directories, once no file is being put into them.
func (d *Dir) closeAll() {
	for dir, at := range d.open {
		_ = at.close() // it was only looked into
		delete(d.open, dir)
	}
}

// Link implements Sink.
func (d *Dir) Link(name, to string) error {
	d.mu.Lock()
	err := d.dirs(name)
	d.mu.Unlock()
	if err != nil {
		return advise("make directory of", name, err)
	}
	err = d.stage.Link(to, name)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EMLINK) {
		return fmt.Errorf("%w: link %s: %w: the file system of the output cannot do that", ErrSkip, name, err)
	}
	if err != nil {
		return advise("link", name, err)
	}
	return nil
}

func (d *Dir) fill(out output, f *inventory.File, body Body) error {
	end := int64(0)
	if err := body(func(off int64, b []byte) error {
		end = off + int64(len(b))
		return out.writeAt(b, off)
	}); err != nil || end == f.Size {
		return err
	}
	return out.truncate(f.Size)
}

// dirs makes the directories of a name. The caller holds the lock.
func (d *Dir) dirs(name string) error {
	dir := path.Dir(name)
	if d.known[dir] {
		return nil
	}
	if err := d.stage.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d.known[dir] = true
	top, _, _ := strings.Cut(name, "/")
	d.tops[top] = true
	return nil
}

// Finish implements Sink.
func (d *Dir) Finish(manifest []byte) error {
	err := d.finish(manifest)
	if err != nil {
		return errors.Join(advise("finish", d.path, err), d.Abort())
	}
	d.ended = true
	return errors.Join(d.stage.Close(), d.root.Close())
}

func (d *Dir) finish(manifest []byte) error {
	d.closeAll()
	if err := d.stage.WriteFile(inventory.Manifest, manifest, 0o600); err != nil {
		return err
	}
	if err := syncAll(d.stage); err != nil {
		return err
	}
	for top := range d.tops {
		if err := d.root.Rename(partial+"/"+top, top); err != nil {
			return err
		}
	}
	if err := d.root.Rename(partial+"/"+inventory.Manifest, inventory.Manifest); err != nil {
		return err
	}
	if err := d.root.Remove(partial); err != nil {
		return err
	}
	return syncDir(d.root)
}

// Abort implements Sink.
func (d *Dir) Abort() error {
	if d.ended || d.root == nil {
		return nil
	}
	d.ended = true
	d.closeAll()
	errs := []error{d.root.RemoveAll(partial)}
	for top := range d.tops {
		errs = append(errs, d.root.RemoveAll(top))
	}
	if d.stage != nil {
		errs = append(errs, d.stage.Close())
	}
	errs = append(errs, d.root.Close())
	if d.made {
		errs = append(errs, os.Remove(d.path))
	}
	return errors.Join(errs...)
}

// advise adds to an error what to do about it.
func advise(verb, name string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s %s: %w: nothing was kept; free space or choose another directory for the output", verb, name, err)
	case errors.Is(err, syscall.EFBIG), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENAMETOOLONG):
		return fmt.Errorf("%w: %s %s: %w: the file system of the output cannot hold it", ErrSkip, verb, name, err)
	}
	return fmt.Errorf("%s %s: %w", verb, name, err)
}

func syncDir(root *os.Root) error {
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
