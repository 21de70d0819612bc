// Package rootdisk prepares a system on a disk image to run in a partition: it installs the agent
// in it, removes it again, and copies the system's kernel out.
package rootdisk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/unit"
)

// Content is what Prepare puts into a system.
type Content struct {
	Program string   // path of the program with the agent in it, linked statically
	Units   []string // services that are started by role
	Mounts  []string // directories on which the pair's disks are mounted
}

// Note begins a message that is not about a change.
const Note = "note: "

// Prepare puts the agent into the system on a disk, and calls tell for each thing that it changes. It
// leaves alone what is already as it should be.
func (d *Disk) Prepare(c Content, tell func(what string)) error {
	for _, u := range c.Units {
		if err := unit.CheckName(u); err != nil {
			return fmt.Errorf("%w, such as nginx.service", err)
		}
	}
	program, err := os.ReadFile(c.Program)
	if err != nil {
		return fmt.Errorf("read the program that is to be the agent: %w", err)
	}
	return d.on(d.root, change, func(root *os.Root) error {
		if err := fits(root); err != nil {
			return fmt.Errorf("prepare %s: %w", d.Path, err)
		}
		labels, err := readLabels(root)
		if err != nil {
			return fmt.Errorf("prepare %s: %w", d.Path, err)
		}
		w := writer{root: root, labels: labels, tell: tell}
		w.put(programPath, program, 0o755)
		w.put(unitPath, []byte(agentUnit), 0o644)
		w.put(rulePath, []byte(rule), 0o644)
		w.put(networkPath, []byte(network), 0o644)
		w.remove(formerPath)
		w.prune(path.Dir(formerPath))
		for _, u := range c.Units {
			w.put(dropInPath(u), []byte(unitDropIn(u)), 0o644)
		}
		w.fstab(func(text string) string {
			text, aside, missing := setAside(text, c.Mounts)
			for _, dir := range missing {
				tell(Note + "/etc/fstab mounts nothing on " + dir)
			}
			for _, l := range aside {
				tell("set aside in /etc/fstab: " + l)
			}
			for _, l := range elsewhere(text, d.uuids()) {
				tell(Note + "the boot may wait for a disk that is not here; if it is one of the pair's, say --mount; else add nofail: " + l)
			}
			return text
		})
		return w.err
	})
}

// Undo removes what Prepare has put there, and calls tell for each thing.
func (d *Disk) Undo(tell func(what string)) error {
	return d.on(d.root, change, func(root *os.Root) error {
		labels, err := readLabels(root)
		if err != nil {
			return err
		}
		w := writer{root: root, labels: labels, tell: tell}
		for _, p := range []string{unitPath, rulePath, networkPath, programPath, formerPath} {
			w.remove(p)
		}
		w.prune(path.Dir(programPath))
		w.prune(path.Dir(formerPath))
		drops, err := fs.Glob(root.FS(), path.Join(unitsPath, "*.d", dropIn))
		if err != nil {
			return err
		}
		for _, p := range drops {
			w.remove(p)
			w.prune(path.Dir(p))
		}
		w.fstab(func(text string) string {
			text, back := putBack(text)
			for _, l := range back {
				tell("put back in /etc/fstab: " + l)
			}
			return text
		})
		return w.err
	})
}

// fits checks whether the agent can run in a system: systemd must be there to start it, a takeover needs
// e2fsck(8), a policy of SELinux that is enforced must say which labels files have, and no other file system may be mounted over them.
func fits(root *os.Root) error {
	fstab, err := root.ReadFile(fstabPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if line := hides(string(fstab)); line != "" {
		return hint.New("look at /"+fstabPath, errors.New("a separate file system would be mounted over the agent's path: "+line),
			"Move what is on it into the root file system, take the line away, and run this again.")
	}
	for _, need := range []struct {
		what, advice string
		paths        []string
	}{
		{"systemd", "A system without it can be the small guest: understudy initramfs.", []string{"usr/lib/systemd/systemd", "lib/systemd/systemd"}},
		{"e2fsck", "Install e2fsprogs in it.", []string{"usr/sbin/e2fsck", "sbin/e2fsck"}},
	} {
		found := false
		for _, p := range need.paths {
			_, err := root.Stat(p)
			found = found || err == nil
		}
		if !found {
			return hint.New("look for "+need.what, fs.ErrNotExist, need.advice)
		}
	}
	config, err := readOptional(root, selinuxPath)
	if err != nil || !enforces(config) {
		return err
	}
	if l, err := readLabels(root); err != nil || l != nil {
		return err
	}
	return hint.New("look at /"+selinuxPath, errors.New("SELinux is enforced there, but its policy has no file_contexts, so that the agent would have no label, and might not run"),
		"Install the policy that it names, or set SELINUX=permissive in it, and run this again.")
}

// uuids returns the UUIDs of the file systems on the disk.
func (d *Disk) uuids() []string {
	out := []string{d.root.uuid}
	for _, fs := range d.rest {
		out = append(out, fs.uuid)
	}
	return out
}

// writer changes a system, until the first error.
type writer struct {
	root   *os.Root
	labels *labels // nil: files have none
	tell   func(string)
	err    error
}

// put makes a file have that content, and its label.
func (w *writer) put(name string, content []byte, mode os.FileMode) {
	if w.err != nil {
		return
	}
	label, err := w.labels.of(name, false)
	if err != nil {
		w.err = err
		return
	}
	before, err := w.root.ReadFile(name)
	if err == nil && bytes.Equal(before, content) && hasLabel(w.root, name, label) {
		return
	}
	what := "wrote"
	if err == nil {
		what = "renewed"
	}
	if w.err = w.makeDirs(path.Dir(name)); w.err == nil {
		w.err = replace(w.root, name, content, mode, label)
	}
	if w.err == nil {
		w.tell(what + " /" + name)
	}
}

// makeDirs makes a directory, and those that it is in. What was there before stays as it was.
func (w *writer) makeDirs(name string) error {
	if _, err := w.root.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.makeDirs(path.Dir(name)); err != nil {
		return err
	}
	label, err := w.labels.of(name, true)
	if err == nil {
		err = w.root.Mkdir(name, 0o755)
	}
	if err != nil {
		return err
	}
	f, err := w.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(setLabel(f, label), f.Close())
}

// replace writes a file with a label: complete and on disk, or not at all.
func replace(root *os.Root, name string, content []byte, mode os.FileMode, label string) error {
	draft := name + ".understudy-new"
	f, err := root.OpenFile(draft, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, bytes.NewReader(content))
	if err = errors.Join(err, f.Chmod(mode), setLabel(f, label), f.Sync(), f.Close()); err == nil {
		err = root.Rename(draft, name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(draft))
	}
	return nil
}

// remove removes a file, which may not be there.
func (w *writer) remove(name string) {
	if w.err != nil {
		return
	}
	err := w.root.Remove(name)
	if err == nil {
		w.tell("removed /" + name)
	} else if !errors.Is(err, fs.ErrNotExist) {
		w.err = err
	}
}

// prune removes a directory of ours if nothing else is in it.
func (w *writer) prune(dir string) {
	if w.err == nil && strings.Count(dir, "/") > 1 {
		_ = w.root.Remove(dir) // it is in use, or not there
	}
}

// fstab changes /etc/fstab, if it is there, and keeps its permissions.
func (w *writer) fstab(change func(string) string) {
	if w.err != nil {
		return
	}
	st, err := w.root.Stat(fstabPath)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var text []byte
	if err == nil {
		text, err = w.root.ReadFile(fstabPath)
	}
	if err != nil {
		w.err = err
		return
	}
	after := change(string(text))
	if after == string(text) {
		return
	}
	label, err := w.labels.of(fstabPath, false)
	if err == nil {
		err = replace(w.root, fstabPath, []byte(after), st.Mode().Perm(), label)
	}
	w.err = err
}
