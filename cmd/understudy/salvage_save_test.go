package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/qmp"
	"understudy.dev/understudy/internal/takeover/offline"
)

// adopted is a QEMU that was not started the way we start it, with a dead kernel in its
// memory. The disks are copies, in their own directory.
type adopted struct {
	*bench
	disks   []fixture.Disk
	sums    [][32]byte // of the disks
	backing int        // how many backing files they have
	qemu    *exec.Cmd
}

// newAdopted starts QEMU with memory as these arguments say, and with what a crash left. With odd, the first file system is
// in a logical volume, and the second one in a qcow2 image.
func newAdopted(t *testing.T, odd bool, arguments ...string) *adopted {
	t.Helper()
	vm(t)
	a := &adopted{bench: &bench{t: t, image: crashImage(t, fixture.Basic)}}
	dir := t.TempDir()
	// A socket's path must be short, so it is not in t.TempDir, nor in the run directory, which must be left empty.
	short, err := os.MkdirTemp("", "us-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	socket := filepath.Join(short, "monitor")
	size, err := os.Stat(a.image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-S", "-accel", "tcg", "-qmp", "unix:" + socket + ",server=on,wait=off", "-m", strconv.FormatInt(size.Size()>>20, 10),
		// Firmware overwrites a piece of it below 1 MiB, which no kernel uses as memory.
		"-device", "loader,file=" + a.image.RAM + ",addr=0,force-raw=on",
	}
	for i, d := range a.image.Disks {
		d.Image = filepath.Join(dir, fmt.Sprintf("disk%d.img", i))
		copyDisk(t, a.image.Disks[i].Image, d.Image)
		format := "raw"
		switch {
		case odd && i == 0:
			d.Image = inVolume(t, d.Image)
		case odd && i == 1:
			format, d.Image, a.backing = "qcow2", overlayOn(t, asQcow2(t, d.Image)), 1
		case odd: // QEMU has it as raw: what the guest has written in front of its file system does not make it anything else
			markAs(t, d.Image, "QFI\xfb\x00\x00\x00\x03")
		}
		a.sums = append(a.sums, sumOf(t, d.Image))
		a.disks = append(a.disks, d)
		args = append(args, "-drive", "format="+format+",if=virtio,file="+d.Image)
	}
	a.qemu = exec.Command("qemu-system-x86_64", slices.Concat(args, arguments)...)
	said := &bytes.Buffer{}
	a.qemu.Stdout, a.qemu.Stderr = said, said
	if err := a.qemu.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.qemu.Process.Kill(); _ = a.qemu.Wait() }) // it may have ended
	a.bench.disk.Image = a.disks[0].Image
	// The monitor answers when the machine has been created, and its memory filled.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	monitor, err := qmp.Dial(ctx, socket)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	defer monitor.Close()
	if s, err := monitor.QueryStatus(ctx); err != nil || s.Running {
		t.Fatalf("%+v, %v", s, err)
	}
	return a
}

// markAs writes something to the beginning of an image.
func markAs(t *testing.T, image, mark string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(mark), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func (a *adopted) pid() string { return strconv.Itoa(a.qemu.Process.Pid) }

// understudy runs a verb of salvage on this process.
func (a *adopted) understudy(verb string, args ...string) (string, error) {
	return understudy(a.t, slices.Concat([]string{"salvage", verb, "--pid", a.pid()}, args)...)
}

// state returns the state of the process, one letter (proc(5)).
func (a *adopted) state() string {
	b, err := os.ReadFile("/proc/" + a.pid() + "/stat")
	if err != nil {
		return ""
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[0]
}

// flash returns arguments for flash memory of the size of firmware, and for its variables in a qcow2 image.
func flash(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	code, vars := filepath.Join(dir, "code.fd"), filepath.Join(dir, "vars.qcow2")
	if err := os.WriteFile(code, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", vars, "64K").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return []string{
		"-drive", "if=pflash,format=raw,readonly=on,file=" + code,
		"-blockdev", `{"node-name":"file","driver":"file","filename":"` + vars + `"}`, "-blockdev", `{"node-name":"vars","driver":"qcow2","file":"file"}`, "-machine", "pflash1=vars",
	}
}

// TestAdopt brings the disks of a QEMU up to date that nobody prepared, wherever it has its
// machine's memory.
func TestAdopt(t *testing.T) {
	ram := func() string { return filepath.Join(t.TempDir(), "ram") }
	for name, arguments := range map[string][]string{
		"anonymous": append(flash(t), "-machine", "pc", "-name", "guest=web,debug-threads=on"),
		"memfd":     {"-machine", "q35,memory-backend=ram", "-object", "memory-backend-memfd,id=ram,size=256M"},
		"file":      {"-machine", "q35,memory-backend=ram", "-object", "memory-backend-file,id=ram,size=256M,share=on,mem-path=" + ram()},
		"private":   {"-machine", "q35,memory-backend=ram", "-object", "memory-backend-file,id=ram,size=256M,share=off,mem-path=" + ram()},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "anonymous" {
				tier.Full(t, "memory of a machine as "+name)
			}
			a := newAdopted(t, name == "anonymous", arguments...)
			if out, err := a.understudy("apply"); err == nil || !strings.Contains(err.Error(), "--end") {
				t.Errorf("without --end: %v: %s", err, out)
			}
			if s := a.state(); s == "T" || s == "Z" || s == "" {
				t.Errorf("the process was left in state %q", s)
			}
			for i, d := range a.disks {
				if sumOf(t, d.Image) != a.sums[i] {
					t.Errorf("%s has changed", d.Name)
				}
			}
			a.applied(name == "anonymous")
		})
	}
}

// applied brings the disks up to date, and checks the report and, with look, what is on one of
// the disks.
func (a *adopted) applied(look bool) {
	a.t.Helper()
	out, err := a.understudy("apply", "--end", "--json")
	if err != nil {
		a.t.Fatalf("%v: %s", err, out)
	}
	var r offline.Adopted
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		a.t.Fatal(err)
	}
	if len(r.Reports) != len(a.disks) || !r.Complete() || r.Memory != "" {
		a.t.Fatalf("of %d disks: %s", len(a.disks), out)
	}
	for _, d := range a.disks {
		i := slices.IndexFunc(r.Reports, func(r *offline.Report) bool { return r.Disk == d.Image })
		if i < 0 {
			a.t.Errorf("nothing is said of %s", d.Image)
		} else if qcow := strings.HasSuffix(d.Image, ".qcow2"); look && (d.Name == "ext4" || qcow) {
			b := *a.bench
			b.disk, b.crash = d, a.image.Format(d.Name)
			if qcow {
				b.disk.Image = asRaw(a.t, d.Image)
			}
			if r.Reports[i].Volume != "" {
				b.disk.Image = filepath.Join(a.t.TempDir(), "disk.img")
				outOfVolume(a.t, d.Image, volumeName, b.disk.Image)
			}
			b.complete(*r.Reports[i])
		}
	}
	count := 0
	dirs := make(map[string]bool)
	for _, d := range a.disks {
		dirs[filepath.Dir(d.Image)] = true
	}
	for dir := range dirs {
		entries, err := os.ReadDir(dir)
		if count += len(entries); err != nil {
			a.t.Error(err)
		}
	}
	if want := len(a.disks) + a.backing; count != want {
		a.t.Errorf("there are %d files in place of %d", count, want)
	}
}

// TestAdoptRefused checks that a machine without a dead kernel, or with a disk that cannot
// be written to, is refused, and that the process keeps running.
func TestAdoptRefused(t *testing.T) {
	a := newAdopted(t, false, "-machine", "q35")
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(kept, []byte("the last copy"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := a.understudy("save", kept); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("saved over a file: %v: %s", err, out)
	}
	if b, err := os.ReadFile(kept); err != nil || string(b) != "the last copy" {
		t.Errorf("the file has %q, %v", b, err)
	}
	out, err := a.understudy("apply", "--end", "--memory", kept)
	if err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("applied with a file in the way: %v: %s", err, out)
	}
	out, err = a.understudy("apply", "--end", "--guest", t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "boot/vmlinuz") {
		t.Errorf("applied without a kernel for its guest: %v: %s", err, out)
	}
	a.unchanged()
	other := filepath.Join(t.TempDir(), "other.vmdk")
	checked(t, "qemu-img", "create", "-q", "-f", "vmdk", other, "1M")
	a = newAdopted(t, false, "-machine", "q35", "-drive", "format=vmdk,if=virtio,file="+other)
	out, err = a.understudy("apply", "--end")
	if err == nil || !strings.Contains(err.Error(), "vmdk") || !strings.Contains(err.Error(), "qemu-img convert") {
		t.Errorf("a vmdk image: %v: %s", err, out)
	}
	a.unchanged()
}

// unchanged checks that the process goes on, and that nothing is left beside its disks.
func (a *adopted) unchanged() {
	a.t.Helper()
	if s := a.state(); s == "T" || s == "Z" || s == "" {
		a.t.Errorf("the process was left in state %q", s)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(a.disks[0].Image), "*.memory")); len(left) > 0 {
		a.t.Errorf("left %v", left)
	}
}
