// Package dirtylog makes disks whose journals are dirty, as a crash leaves them, and lets
// a real kernel replay journals, for tests.
package dirtylog

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/dirtylog/order"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
)

const qemu = "qemu-system-x86_64"

// guest is a QEMU that runs our program.
type guest struct {
	cmd     *exec.Cmd
	console string
	said    bytes.Buffer
	ended   chan struct{}
}

// tries is how many times a guest is started if its kernel dies before it runs our program: see package fixture.
const tries = 4

// boot starts a guest with a kernel, and with disks, which are paths by serial number. It
// ends with the test. The test is skipped if this machine cannot run it.
func boot(t testing.TB, kernel string, o order.Order, disks map[string]string) *guest {
	t.Helper()
	if _, err := exec.LookPath(qemu); err != nil {
		tier.Lacks(t, fmt.Sprint(err, "; run scripts/setup.sh"))
	}
	release := fixture.NeedKernel(t, kernel)
	tier.Say(t, "boot %s with %d disks", kernel, len(disks))
	dir := t.TempDir()
	initrd := pack(t, dir, release, o)
	console := filepath.Join(dir, "console")
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,usb=off,vmport=off",
		"-accel", "tcg,thread=multi", "-cpu", "max,cx16=off,erms=off,fsrm=off", "-smp", "2", "-m", "512",
		"-action", "reboot=shutdown", "-kernel", filepath.Join(release, "boot", "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 oops=panic loglevel=6 random.trust_cpu=on", "-serial", "file:" + console,
	}
	serials := make([]string, 0, len(disks))
	for serial := range disks {
		serials = append(serials, serial)
	}
	slices.Sort(serials)
	for _, serial := range serials {
		args = append(args, "-drive", "if=none,format=raw,cache=unsafe,id="+serial+",file="+disks[serial],
			"-device", "virtio-blk-pci,drive="+serial+",serial="+serial)
	}
	for try := 1; ; try++ {
		if g := start(t, console, args); g.begins() || try == tries {
			return g
		}
	}
}

// start runs QEMU.
func start(t testing.TB, console string, args []string) *guest {
	t.Helper()
	g := &guest{console: console, ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	g.cmd = exec.CommandContext(ctx, qemu, args...)
	g.cmd.Stdout, g.cmd.Stderr = &g.said, &g.said
	dieTogether(g.cmd)
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = g.cmd.Wait() // killed, or it says why on the console
		close(g.ended)
	}()
	t.Cleanup(func() { cancel(); <-g.ended })
	return g
}

// begins waits until the guest runs our program, and returns false if its kernel dies before that. If it hangs, await
// says so.
func (g *guest) begins() bool {
	for deadline := time.Now().Add(15 * time.Minute); time.Now().Before(deadline); {
		if b, err := os.ReadFile(g.console); err == nil && bytes.Contains(b, []byte(order.Begun)) {
			return true
		}
		select {
		case <-g.ended:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
	return true
}

// pack makes the guest's initial RAM file system.
func pack(t testing.TB, dir, release string, o order.Order) string {
	t.Helper()
	init := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", init, "understudy.dev/understudy/internal/lab/dirtylog/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v: %s", err, out)
	}
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(release, "lib", "modules", filepath.Base(release))
	modules := []string{"virtio_pci", "virtio_blk", "loop", "ext4"}
	// Modules that ext4 requests by name. Which of them exist differs between kernels.
	for _, name := range []string{"crc32c_generic", "crc32c_intel", "libcrc32c", "crc32c"} {
		if _, err := initramfs.ModuleOrder(tree, []string{name}); err == nil {
			modules = append(modules, name)
		}
	}
	path := filepath.Join(dir, "initrd")
	err = initramfs.WriteFile(path, initramfs.Spec{
		Init: init, ModulesDir: tree, Modules: modules, Files: []initramfs.File{initramfs.Text(order.Path, string(b), 0o644)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// await waits until the guest prints line, and returns all that it has printed.
func (g *guest) await(t testing.TB, line string) string {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Minute); ; {
		b, _ := os.ReadFile(g.console) // it may not be there yet
		said := strings.ReplaceAll(string(b), "\r", "")
		gone := false
		select {
		case <-g.ended:
			gone = true
		case <-time.After(20 * time.Millisecond):
		}
		switch {
		case strings.Contains(said, order.Failed):
			t.Fatalf("guest: %s", tail(said))
		case strings.Contains(said, line):
			return said
		case gone || time.Now().After(deadline):
			t.Fatalf("guest never said %q: %s%s", line, tail(said), g.said.String())
		}
	}
}

func tail(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// Image is a disk with a file system on it.
type Image struct {
	Name    string // of its Format
	Type    string // for mount(2)
	Options string // likewise
	Path    string
}

// Format is how a file system is made and mounted.
type Format struct {
	Name    string
	Type    string // for mount(2)
	Options string // likewise
	Fsyncs  bool   // most of the work in it is fsync(2)
	Size    int64  // of the disk, in bytes
	Mkfs    []string
}

// Make makes an empty file system.
func (f Format) Make(t testing.TB, path string) {
	t.Helper()
	if _, err := exec.LookPath("mke2fs"); err != nil {
		tier.Lacks(t, fmt.Sprint(err, "; run scripts/setup.sh"))
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, f.Size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("mke2fs", append(append([]string{"-qF", "-t", f.Type}, f.Mkfs...), path)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
}

// Crash lets a kernel work in file systems of all formats at once, and returns what was
// on their disks at several instants, as if the machine had lost its power at each. These
// are given as steps: how many operations were done in each file system by then,
// multiples of order.StepsEvery.
func Crash(t testing.TB, kernel string, seed uint64, formats []Format, steps ...int) []Image {
	t.Helper()
	dir := t.TempDir()
	disks := make(map[string]string)
	o := order.Order{Seed: seed}
	for _, f := range formats {
		path := filepath.Join(dir, f.Name)
		f.Make(t, path)
		disks[f.Name] = path
		o.Work = append(o.Work, order.FileSystem{Serial: f.Name, Type: f.Type, Options: f.Options, Fsyncs: f.Fsyncs})
	}
	g := boot(t, kernel, o, disks)
	var images []Image
	for i, n := range steps {
		g.await(t, fmt.Sprintf("%s%d\n", order.Steps, n))
		g.freeze(t)
		for _, f := range formats {
			image := Image{f.Name, f.Type, f.Options, fmt.Sprintf("%s.%d", disks[f.Name], i)}
			Copy(t, image.Path, disks[f.Name])
			images = append(images, image)
		}
		g.thaw(t)
	}
	g.await(t, order.Steps) // it did not fail meanwhile
	return images
}

// Copy copies an image; holes stay holes.
func Copy(t testing.TB, to, from string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy image: %v: %s", err, out)
	}
}

// Mounted is how a mount went.
type Mounted struct {
	Err error  // what mount(2) said, if it failed
	Log string // what the kernel said meanwhile
}

// Refused reports whether the kernel could not load or replay the journal
// (fs/ext4/super.c, ext4_load_journal).
func (m Mounted) Refused() bool { return strings.Contains(m.Log, "error loading journal") }

// Mount makes a kernel mount images read-only, which replays their journals and changes
// the images.
func Mount(t testing.TB, kernel string, images []Image) []Mounted {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "images")
	var o order.Order
	var end int64
	for _, image := range images {
		size := fileSize(t, image.Path)
		o.Images = append(o.Images, order.Image{Offset: uint64(end), Size: uint64(size), Type: image.Type, Options: image.Options})
		move(t, disk, end, image.Path, 0, size)
		end += size
	}
	if err := os.Truncate(disk, end); err != nil {
		t.Fatal(err)
	}
	g := boot(t, kernel, o, map[string]string{order.Disk: disk})
	said := g.await(t, order.Done)
	<-g.ended
	var all []Mounted
	for i, image := range images {
		var m Mounted
		var ok bool
		if m.Log, said, ok = strings.Cut(said, fmt.Sprintf("%s%d ", order.Mounted, i)); !ok {
			t.Fatalf("guest says nothing of image %d: %s", i, tail(said))
		}
		answer, rest, _ := strings.Cut(said, "\n")
		if said = rest; strings.TrimSpace(answer) != "mounted" {
			m.Err = fmt.Errorf("mount: %s", strings.TrimSpace(answer))
		}
		move(t, image.Path, 0, disk, int64(o.Images[i].Offset), int64(o.Images[i].Size))
		all = append(all, m)
	}
	return all
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// move copies a piece of a file, without writing zeros where there are zeros already.
func move(t testing.TB, to string, toOffset int64, from string, fromOffset, size int64) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	b, old, zero := make([]byte, 1<<16), make([]byte, 1<<16), make([]byte, 1<<16)
	for done := int64(0); done < size; {
		n := int(min(size-done, int64(len(b))))
		if _, err := in.ReadAt(b[:n], fromOffset+done); err != nil {
			t.Fatal(err)
		}
		have, _ := out.ReadAt(old[:n], toOffset+done) // it may still be too short
		if !bytes.Equal(b[:n], old[:n]) || have < n && !bytes.Equal(b[:n], zero[:n]) {
			if _, err := out.WriteAt(b[:n], toOffset+done); err != nil {
				t.Fatal(err)
			}
		}
		done += int64(n)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
