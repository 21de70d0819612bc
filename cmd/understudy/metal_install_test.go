package main

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
)

func TestServiceOf(t *testing.T) {
	for text, want := range map[string]wire.Service{
		"web.service":    {Name: "web", Unit: "web.service"},
		"web.service=80": {Name: "web", Unit: "web.service", Ready: 80},
	} {
		if got, err := serviceOf(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"web.service=", "web.service=0", "web.service=65536", "web.service=http"} {
		if got, err := serviceOf(text); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}

// TestUninstallNothing checks that uninstall succeeds if there is nothing, or no longer anything, to remove.
func TestUninstallNothing(t *testing.T) {
	for _, path := range []string{metal.UnitFile, metal.GRUBFile, metal.StateDir} {
		if _, err := os.Lstat(path); err == nil {
			t.Skipf("this machine has an understudy installed: %s", path)
		}
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for name, script := range map[string]string{"update-grub": "exit 0", "systemctl": `test "$1" = daemon-reload`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := uninstall(); err != nil {
		t.Error(err)
	}
}

// TestInstallElsewhere checks that nothing is written on a system that boots in another way.
func TestInstallElsewhere(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := new(installation).install(io.Discard); err == nil || !strings.Contains(err.Error(), "update-grub") {
		t.Error(err)
	}
}

// TestPlace checks that the file for GRUB is written when everything else is done, and that it does not stay without
// having been there before if anything fails.
func TestPlace(t *testing.T) {
	for _, c := range []struct {
		name              string
		there             bool   // the file for GRUB, from an earlier installation
		fails             string // a program
		full              bool   // the last of the other files cannot be written
		wrong, grub, unit bool   // what is to come of it
	}{
		{name: "first", grub: true, unit: true},
		{name: "again", there: true, grub: true, unit: true},
		{name: "no room", full: true, wrong: true},
		{name: "systemctl fails", fails: "systemctl", wrong: true, unit: true},
		{name: "update-grub fails", fails: "update-grub", wrong: true, unit: true},
		{name: "update-grub fails again", fails: "update-grub", there: true, wrong: true, grub: true, unit: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			grub, unit := filepath.Join(dir, "grub.cfg"), filepath.Join(dir, "unit")
			scripts := map[string]string{ // each fails if what must be there is not
				"systemctl":   "test -e " + unit + " && ! grep -qs new " + grub,
				"update-grub": "grep -q new " + grub,
			}
			if c.fails != "" {
				scripts[c.fails] = "false"
			}
			for name, script := range scripts {
				if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			if c.there {
				if err := os.WriteFile(grub, []byte("old"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if c.full {
				unit = filepath.Join(dir, "none", "unit")
			}
			err := place(placed{grub, []byte("new")}, placed{filepath.Join(dir, "vmlinuz"), nil}, placed{unit, nil})
			if (err != nil) != c.wrong {
				t.Error(err)
			}
			for path, want := range map[string]bool{grub: c.grub, unit: c.unit} {
				if _, err := os.Stat(path); (err == nil) != want {
					t.Errorf("%s: %v", path, err)
				}
			}
		})
	}
}

// TestKeepsRole checks that a role is replaced by an equal one only.
func TestKeepsRole(t *testing.T) {
	made := []byte(`{"partition": "understudy"}`)
	for before, wrong := range map[string]bool{"": false, string(made): false, string(made) + "\n": false, `{"partition": "understudy", "without": ["/boot"]}`: true} {
		path := filepath.Join(t.TempDir(), "role.json")
		if before != "" {
			if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := keepsRole(path, made); (err != nil) != wrong || wrong && !strings.Contains(err.Error(), "--role "+path) {
			t.Errorf("%s: %v", before, err)
		}
	}
}
