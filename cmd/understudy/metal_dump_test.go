package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
)

// TestMetalDump checks that an understudy that cannot mount what it takes over, since its kernel is too old for
// it, keeps the dead kernel's memory on the disk that the role names, where swap was, and gives the machine
// back. All unsaved data can be read from that.
func TestMetalDump(t *testing.T) {
	tier.Full(t, "a takeover that fails, and the memory that it leaves")
	role := filepath.Join(t.TempDir(), "dump.json")
	if err := os.WriteFile(role, []byte(strings.Replace(metalRole, `"disks"`, `"dump": "swap", "disks"`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	m := bareMachine{
		beside: "5.10-cloud", files: []string{role},
		script: strings.ReplaceAll(metalStart, "/role.json", "/dump.json") + "cat /tmp/run\n" + metalWork + "echo c > /proc/sysrq-trigger\n",
	}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	data, swap := filepath.Join(m.Dir, "data.img"), filepath.Join(m.Dir, "swap.img")
	makeData(t, data)
	checked(t, "tune2fs", "-O", "orphan_file", data)
	if err := errors.Join(os.WriteFile(swap, nil, 0o600), os.Truncate(swap, 4<<30)); err != nil {
		t.Fatal(err)
	}
	checked(t, "mkswap", swap)
	virtio.attach(t, m, data)
	m.Devices = append(m.Devices, "-drive", "if=none,id=swap,format=raw,discard=unmap,detect-zeroes=unmap,file="+swap, "-device", "virtio-blk-pci,drive=swap,serial=swap")
	said := resets(t, ctx, m)
	if !strings.Contains(said, "PROTECTED") || strings.Contains(said, "would take no dump") {
		t.Fatal("it did not protect, or will not take a dump")
	}
	// The image is made a block device again, as on a machine that has booted.
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", swap).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	defer func() { checked(t, "losetup", "-d", device) }()
	if _, err := understudy(t, "salvage", "apply", device, "--disk", data); err != nil {
		t.Fatal(err)
	}
	_ = exec.Command("e2fsck", "-p", data).Run() // as a mount, this clears orphan_present; anything else that is wrong is found below
	checkDisk(t, said, data)
}
