package partition

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// installs puts a program in place of QEMU that answers -help and -device help.
func installs(t *testing.T, help, devices string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"help": help, "devices": devices} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in\n-help) cat %[1]s/help;;\n'-device help') cat %[1]s/devices;;\n*) exit 1;;\nesac\n", dir)
	if err := os.WriteFile(filepath.Join(dir, qemu), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// What the -help of versions of QEMU says of the options that change its user.
const (
	help7 = `-nodefaults     don't create default devices
-chroot dir     chroot to dir just before starting the VM
-runas user     change to user id user just before starting the VM
                user can be numeric uid:gid instead
`
	help8 = help7 + `-run-with [async-teardown=on|off][,chroot=dir]
                Set miscellaneous QEMU process lifecycle options:
`
	help9  = help7 + help10
	help10 = `-nodefaults     don't create default devices
-run-with [async-teardown=on|off][,chroot=dir][user=username|uid:gid]
                Set miscellaneous QEMU process lifecycle options:
                user=username switch to the specified user before starting the VM
`
)

// TestBecoming: QEMU is told to change its user by an option that it has, even when it was replaced
// since it was last asked.
func TestBecoming(t *testing.T) {
	for _, tt := range []struct{ name, help, want string }{
		{"7.2", help7, "-runas 7:8"}, {"8.2", help8, "-runas 7:8"}, {"9.2", help9, "-runas 7:8"}, {"10.0, 11.1", help10, "-run-with user=7:8"},
	} {
		if got := strings.Join(becoming(tt.help, "7:8"), " "); got != tt.want {
			t.Errorf("%s: %s", tt.name, got)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("not root, who alone has QEMU change its user")
	}
	s := spec()
	s.Outlives = true
	for help, want := range map[string]string{help7: "-runas " + s.user(), help10: "-run-with user=" + s.user()} {
		installs(t, help, "")
		has(t, s, want)
	}
}

// devices returns QEMU's list of devices with the needed ones, except for some.
func devices(without ...string) string {
	list := "Misc devices:\n"
	for _, name := range append(slices.Clone(needed), "ivshmem-doorbell", "virtio-blk-pci-transitional") {
		if !slices.Contains(without, name) {
			list += fmt.Sprintf("name %q, bus PCI\n", name)
		}
	}
	return list
}

// TestInstalled: a QEMU that partitions cannot run in is refused before one is started, and the error names
// what it lacks; RHEL's QEMU does not count as one.
func TestInstalled(t *testing.T) {
	installs(t, "", devices())
	if err := Installed(); err != nil {
		t.Error(err)
	}
	installs(t, "", devices("ivshmem-plain", "pvpanic-pci"))
	if err := Installed(); err == nil || !strings.Contains(err.Error(), "built without ivshmem-plain, pvpanic-pci\n") {
		t.Errorf("as RHEL builds it: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	rhel := onlyKVM
	defer func() { onlyKVM = rhel }()
	for _, there := range []bool{false, true} {
		if onlyKVM = filepath.Join(t.TempDir(), "qemu-kvm"); there {
			if err := os.WriteFile(onlyKVM, nil, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		err := Installed()
		if err == nil || !strings.Contains(err.Error(), "Install qemu-system-x86.") || strings.Contains(err.Error(), onlyKVM) != there {
			t.Errorf("none, and RHEL's %v: %v", there, err)
		}
	}
}

// TestLastWords: QEMU's output begins after the logged command line, whatever the command line would be now.
func TestLastWords(t *testing.T) {
	p := &Process{Spec: spec()}
	p.Spec.Dir = t.TempDir()
	for log, want := range map[string]string{"": "", "qemu -x\n": "", "qemu -runas 1:1\n-runas: invalid option\n": "\nqemu said: -runas: invalid option\n"} {
		if err := os.WriteFile(p.Spec.logPath(), []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := p.LastWords(); got != want {
			t.Errorf("%q: %q", log, got)
		}
	}
}
