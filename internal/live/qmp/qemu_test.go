package qmp

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startQEMU runs a QEMU without a machine and returns a client of its monitor.
func startQEMU(t *testing.T, args ...string) (*Client, *exec.Cmd) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	args = append([]string{"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-qmp", "unix:" + path + ",server=on,wait=off"}, args...)
	cmd := exec.Command("qemu-system-x86_64", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: run scripts/setup.sh", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := Dial(ctx, path)
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	t.Cleanup(func() { c.Close() })
	return c, cmd
}

func TestQEMUWithoutMachine(t *testing.T) {
	c, cmd := startQEMU(t, "-machine", "none")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if s, err := c.QueryStatus(ctx); err != nil || s.Running || s.Status != "prelaunch" {
		t.Errorf("status %+v, %v", s, err)
	}
	err := c.Execute(ctx, "blockdev-del", map[string]any{"node-name": "empty"}, nil)
	if e, ok := errors.AsType[*Error](err); !ok || e.Command != "blockdev-del" {
		t.Errorf("removal of what is not there: %v, want the server's refusal", err)
	}
	if err := c.Quit(ctx); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("QEMU: %v", err)
	}
	last := ""
	for e, err := range c.Events(ctx) {
		if err != nil {
			if !errors.Is(err, errGone) {
				t.Error(err)
			}
			break
		}
		last = e.Name
		if time.Since(e.Time) > time.Minute || time.Since(e.Came) > time.Minute {
			t.Errorf("%s at %v", e.Name, e.Time)
		}
	}
	if last != "SHUTDOWN" {
		t.Errorf("last event %q, want SHUTDOWN", last)
	}
}

// TestQEMUHandsOverDrive does to an idle machine what a takeover does to the
// understudy: the plugged drive changes to another node.
func TestQEMUHandsOverDrive(t *testing.T) {
	c, _ := startQEMU(t, "-machine", "q35", "-accel", "tcg", "-m", "32", "-smp", "2",
		"-blockdev", "null-co,node-name=vacant,size=1048576", "-blockdev", "null-co,node-name=real,size=1048576",
		"-device", "virtio-blk-pci,id=data,drive=vacant")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cpus, err := c.QueryCPUs(ctx)
	if err != nil || len(cpus) != 2 || cpus[0].ThreadID == 0 || cpus[0].ThreadID == cpus[1].ThreadID || cpus[1].Index != 1 {
		t.Errorf("CPUs %+v, %v", cpus, err)
	}
	if err := c.QOMSet(ctx, "/machine/peripheral/data", "drive", "real"); err != nil {
		t.Fatal(err)
	}
	drive := ""
	if err := c.Execute(ctx, "qom-get", map[string]any{"path": "/machine/peripheral/data", "property": "drive"}, &drive); err != nil || drive != "real" {
		t.Errorf("drive %q, %v", drive, err)
	}
	if stats, err := c.QueryBlockStats(ctx); err != nil || len(stats) != 1 || !strings.HasPrefix(stats[0].QDev, "/machine/peripheral/data") {
		t.Errorf("statistics %+v, %v", stats, err)
	}
}

// crashLoaded is a boot sector that says through pvpanic, at its port 0x505, that a crash
// kernel is about to run, and then that it panicked (QEMU, docs/specs/pvpanic.txt).
var crashLoaded = []byte{
	0xba, 0x05, 0x05, // mov dx, 0x505
	0xb0, 0x02, 0xee, // mov al, 2; out dx, al
	0xb0, 0x01, 0xee, // mov al, 1; out dx, al
	0xeb, 0xfe, // jmp to itself
	510: 0x55, 511: 0xaa,
}

// TestQEMUTellsOfDeath: both dying messages come, and neither of them stops the machine: that
// is left to us.
func TestQEMUTellsOfDeath(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, append(crashLoaded, make([]byte, 64<<10-len(crashLoaded))...), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _ := startQEMU(t, "-machine", "pc", "-accel", "tcg", "-m", "16", "-action", "panic=none",
		"-drive", "if=ide,format=raw,snapshot=on,file="+disk, "-device", "pvpanic")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.Cont(ctx); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for e, err := range c.Events(ctx) {
		if err != nil {
			t.Fatalf("%v with %v seen", err, seen)
		}
		if e.Name == EventGuestCrashloaded || e.Name == EventGuestPanicked {
			seen = append(seen, e.Name)
		}
		if len(seen) == 2 {
			break
		}
	}
	if seen[0] != EventGuestCrashloaded || seen[1] != EventGuestPanicked {
		t.Errorf("events %v", seen)
	}
	if s, err := c.QueryStatus(ctx); err != nil || !s.Running {
		t.Errorf("status %+v, %v", s, err)
	}
}
