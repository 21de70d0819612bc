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
