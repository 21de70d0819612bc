package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/metal"
)

// placed is a file that install writes.
type placed struct {
	path string
	text []byte
}

// place writes files in this order, and has the system use them. The file for GRUB comes last: the kernel parameters
// without the understudy would only take memory and a CPU from the machine, while the rest does nothing without the
// parameters. If update-grub fails, a file for GRUB that was not there before is removed.
func place(grub placed, files ...placed) error {
	for _, f := range files {
		if err := replaceFile(f.path, f.text); err != nil {
			return err
		}
	}
	if err := errors.Join(system("systemctl", "daemon-reload"), system("systemctl", "enable", metal.Unit)); err != nil {
		return err
	}
	_, before := os.Lstat(grub.path)
	if err := replaceFile(grub.path, grub.text); err != nil {
		return err
	}
	err := system("update-grub")
	if err != nil && errors.Is(before, os.ErrNotExist) {
		err = errors.Join(err, os.Remove(grub.path))
	}
	return err
}

// replaceFile writes a file so that it is complete and on disk, or not changed at all.
func replaceFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".understudy-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// system runs a program of the system.
func system(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

func metalRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove",
		Short: "Undo metal install: stop the understudy, and give its CPUs and memory back at the next boot",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return uninstall() },
	}
}

// uninstall removes what exists of an installation, even if there is none, or one that failed.
func uninstall() error {
	var errs []error
	if _, err := os.Stat(metal.UnitFile); err == nil {
		errs = append(errs, system("systemctl", "disable", "--now", metal.Unit))
	}
	for _, path := range []string{metal.UnitFile, metal.GRUBFile} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, os.RemoveAll(metal.StateDir), system("systemctl", "daemon-reload"), system("update-grub"))
	return errors.Join(errs...)
}
