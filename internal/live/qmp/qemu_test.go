package qmp

import (
	"context"
	"errors"
	"fmt"
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
	if c.Greeting().Major < 7 {
		t.Errorf("greeting %+v", c.Greeting())
	}
	if s, err := c.QueryStatus(ctx); err != nil || s.Running || s.Status != "prelaunch" {
		t.Errorf("status %+v, %v", s, err)
	}
	node := map[string]any{"driver": "null-co", "node-name": "empty", "size": 1 << 20, "read-zeroes": true}
	if err := c.BlockdevAdd(ctx, node); err != nil {
		t.Fatal(err)
	}
	nodes, err := c.QueryBlockNodes(ctx)
	if err != nil || len(nodes) != 1 || nodes[0].NodeName != "empty" || nodes[0].Driver != "null-co" || nodes[0].Image.VirtualSize != 1<<20 {
		t.Errorf("nodes %+v, %v", nodes, err)
	}
	if stats, err := c.QueryBlockStats(ctx, true); err != nil || len(stats) != 1 || stats[0].NodeName != "empty" {
		t.Errorf("statistics %+v, %v", stats, err)
	}
	if err := c.BlockdevDel(ctx, "empty"); err != nil {
		t.Error(err)
	}
	err = c.BlockdevDel(ctx, "empty")
	if e, ok := errors.AsType[*Error](err); !ok || e.Command != "blockdev-del" {
		t.Errorf("second removal: %v, want the server's refusal", err)
	}
	var kind string
	if err := c.QOMGet(ctx, "/machine", "type", &kind); err != nil || kind != "none-machine" {
		t.Errorf("machine %q, %v", kind, err)
	}
	version := fmt.Sprintf("%d.%d.%d", c.Greeting().Major, c.Greeting().Minor, c.Greeting().Micro)
	if out, err := c.HumanMonitor(ctx, "info version"); err != nil || !strings.HasPrefix(out, version) {
		t.Errorf("info version: %q, %v; want %s", out, err, version)
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
			if !errors.Is(err, ErrGone) {
				t.Error(err)
			}
			break
		}
		last = e.Name
		var s Shutdown
		if e.Name == EventShutdown {
			if err := e.Decode(&s); err != nil || s.Reason != "host-qmp-quit" || s.Guest || time.Since(e.Time) > time.Minute {
				t.Errorf("shutdown %+v at %v, %v", s, e.Time, err)
			}
		}
	}
	if last != EventShutdown {
		t.Errorf("last event %q, want %s", last, EventShutdown)
	}
}

// TestQEMUHandsOverDrive does to an idle machine what a takeover does to the
// understudy: the plugged drive changes to another node.
func TestQEMUHandsOverDrive(t *testing.T) {
	c, _ := startQEMU(t, "-machine", "q35", "-accel", "tcg", "-m", "32", "-smp", "2",
		"-blockdev", "null-co,node-name=place,size=1048576",
		"-device", "virtio-blk-pci,id=data,drive=place")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cpus, err := c.QueryCPUs(ctx)
	if err != nil || len(cpus) != 2 || cpus[0].ThreadID == 0 || cpus[0].ThreadID == cpus[1].ThreadID || cpus[1].Index != 1 {
		t.Errorf("CPUs %+v, %v", cpus, err)
	}
	if err := c.BlockdevAdd(ctx, map[string]any{"driver": "null-co", "node-name": "real", "size": 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := c.QOMSet(ctx, "/machine/peripheral/data", "drive", "real"); err != nil {
		t.Fatal(err)
	}
	var drive string
	if err := c.QOMGet(ctx, "/machine/peripheral/data", "drive", &drive); err != nil || drive != "real" {
		t.Errorf("drive %q, %v", drive, err)
	}
	for _, f := range []func(context.Context) error{c.Cont, c.SystemReset, c.Stop} {
		if err := f(ctx); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{EventResume, EventStop, EventReset} // in any order: the reset happens in the main loop
	seen := make(map[string]bool)
	for e, err := range c.Events(ctx) {
		if err != nil {
			t.Fatalf("%v with %v seen, want %v", err, seen, want)
		}
		seen[e.Name] = true
		if seen[want[0]] && seen[want[1]] && seen[want[2]] {
			break
		}
	}
}
