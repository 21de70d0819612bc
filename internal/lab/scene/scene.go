// Package scene plays what a test describes: a guest runs a shell script, with the disks
// that the test made, and its memory and its disks can be taken while it runs, and after
// it has crashed.
package scene

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene/cue"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/qmp"
)

// Spec says what is to happen.
type Spec struct {
	Kernel  string           // as in fixture.Spec; empty means the default one
	Modules []string         // needed by the script, besides those of virtio disks
	Files   []initramfs.File // further files of the guest's image
	Disks   []Disk
	// Script is for busybox's sh -eu. A disk is /dev/vda and so on, in their order. A
	// line "take NAME" stops the machine, dumps its memory, copies its disks, and goes
	// on; "crash" ends the scene, and nothing else may.
	Script  string
	Machine string // QEMU's machine type; empty means q35
	Memory  uint64 // bytes; 0 means 256 MiB
	CPUs    int    // 0 means 2
	Append  string // further kernel parameters
	Taker   Taker  // nil means Dump
	QEMU    []string
}

// Disk is a disk that is made for a scene.
type Disk struct {
	Size int64
	Mkfs []string // without the path; if there is none, the disk stays empty
	Copy string   // if it is not empty, the disk is a copy of this image
}

// Taker writes the memory of a stopped machine to a file. ram is the machine's RAM file.
type Taker func(ctx context.Context, monitor *qmp.Client, ram, into string) error

// Dump makes QEMU dump the memory (dump-guest-memory), as virsh dump --memory-only does.
func Dump(ctx context.Context, monitor *qmp.Client, _, into string) error {
	return monitor.Execute(ctx, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + into}, nil)
}

// Scene is what is left of a scene that was played.
type Scene struct {
	Dir   string
	RAM   string   // path of the RAM file, as the crash left it
	Disks []string // paths of the images, likewise
}

// Memory returns the path of the memory that was taken under a name.
func (s *Scene) Memory(name string) string { return filepath.Join(s.Dir, name+".memory") }

// Disk returns the path of a disk as it was when memory was taken under a name.
func (s *Scene) Disk(name string, n int) string {
	return filepath.Join(s.Dir, fmt.Sprintf("%s.disk%d", name, n))
}

// limit is how long a scene may take, on a machine that is very busy. Under emulation with QEMU before 8.1 a kernel hangs now
// and then while it patches its own code: then the scene is played again.
const (
	limit = 5 * time.Minute
	tries = 2
)

const preamble = `take() { echo "` + cue.Take + `$1"; read -r answer; }
crash() { echo c >/proc/sysrq-trigger; sleep 1000; }
mkdir -p /mnt
`

// Play plays a scene. The test is skipped if this machine lacks what is needed.
func Play(t testing.TB, spec Spec) *Scene {
	t.Helper()
	kernel := fixture.NeedKernel(t, cmp.Or(spec.Kernel, fixture.Default))
	tier.Programs(t, "qemu-system-x86_64", "busybox")
	s := &Scene{Dir: t.TempDir()}
	s.RAM = filepath.Join(s.Dir, "ram")
	for n := range spec.Disks {
		s.Disks = append(s.Disks, filepath.Join(s.Dir, fmt.Sprintf("disk%d", n)))
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(s.Dir, "initrd")
	files := append([]initramfs.File{
		initramfs.Text(cue.Script, preamble+spec.Script, 0o644), initramfs.Copy(cue.Busybox, busybox, 0o755),
	}, spec.Files...)
	err = fixture.Pack(initrd, "understudy.dev/understudy/internal/lab/scene/guest", kernel, spec.Modules, files...)
	if err != nil {
		t.Fatal(err)
	}
	tier.Say(t, "play a scene on %s", filepath.Base(kernel))
	for try := 1; ; try++ {
		for n, d := range spec.Disks {
			makeDisk(t, s.Disks[n], d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err := s.play(ctx, spec, filepath.Join(kernel, "boot", "vmlinuz"), initrd)
		cancel()
		if err == nil {
			return s
		}
		console, _ := os.ReadFile(s.path("console"))
		if try == tries || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("scene: %v; it said:\n%s", err, console[max(0, len(console)-4000):])
		}
		tier.Say(t, "play it again: it took more than %v", limit)
		if err := os.Remove(s.path("console")); err != nil {
			t.Fatal(err)
		}
	}
}

func makeDisk(t testing.TB, path string, d Disk) {
	t.Helper()
	if d.Copy != "" {
		if out, err := exec.Command("cp", "--sparse=always", d.Copy, path).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		return
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, d.Size); err != nil {
		t.Fatal(err)
	}
	if len(d.Mkfs) == 0 {
		return
	}
	if out, err := exec.Command(d.Mkfs[0], append(d.Mkfs[1:len(d.Mkfs):len(d.Mkfs)], path)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", d.Mkfs, err, out)
	}
}

func (s *Scene) play(ctx context.Context, spec Spec, kernel, initrd string) error {
	memory := cmp.Or(spec.Memory, 256<<20)
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", cmp.Or(spec.Machine, "q35") + ",memory-backend=ram,usb=off,vmport=off",
		"-accel", "tcg,thread=multi", "-cpu", "max,cx16=off,erms=off,fsrm=off", "-smp", fmt.Sprint(cmp.Or(spec.CPUs, 2)), "-m", fmt.Sprintf("size=%dk", memory>>10),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=on", memory, s.RAM),
		"-action", "panic=none,reboot=shutdown", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 panic=0 oops=panic quiet random.trust_cpu=on no_timer_check " + spec.Append,
		"-chardev", "socket,id=console,path=" + s.path("serial") + ",server=on,wait=off,logfile=" + s.path("console"),
		"-serial", "chardev:console", "-qmp", "unix:" + s.path("qmp") + ",server=on,wait=off",
	}
	for n, disk := range s.Disks {
		id := fmt.Sprintf("disk%d", n)
		args = append(args, "-drive", "if=none,format=raw,cache=unsafe,id="+id+",file="+disk, "-device", "virtio-blk-pci,drive="+id+",serial="+id)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, spec.QEMU...)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	dieTogether(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	err := s.follow(ctx, spec, ended)
	cancel()
	if err != nil && said.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, said.String())
	}
	return err
}

func (s *Scene) path(name string) string { return filepath.Join(s.Dir, name) }

// follow carries out what the script asks for, until the guest has crashed.
func (s *Scene) follow(ctx context.Context, spec Spec, ended <-chan error) error {
	taken := 0
	for {
		said, _ := os.ReadFile(s.path("console")) // not there yet
		lines := strings.Split(strings.ReplaceAll(string(said), "\r", ""), "\n")
		var takes []string
		for _, l := range lines[:len(lines)-1] {
			_, reason, failed := strings.Cut(l, cue.Failed)
			_, name, take := strings.Cut(l, cue.Take)
			switch {
			case failed:
				return errors.New(reason)
			case take:
				takes = append(takes, name)
			case strings.Contains(l, partition.PanicEnd):
				return nil
			}
		}
		for ; taken < len(takes); taken++ {
			if err := s.take(ctx, spec, takes[taken]); err != nil {
				return fmt.Errorf("take %s: %w", takes[taken], err)
			}
		}
		select {
		case err := <-ended:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("it ended too early: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// take stops the machine, takes its memory and disks, and lets it go on.
func (s *Scene) take(ctx context.Context, spec Spec, name string) error {
	monitor, err := qmp.Dial(ctx, s.path("qmp"))
	if err != nil {
		return err
	}
	defer monitor.Close()
	if err := monitor.Execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	taker := spec.Taker
	if taker == nil {
		taker = Dump
	}
	if err := taker(ctx, monitor, s.RAM, s.Memory(name)); err != nil {
		return err
	}
	for n, disk := range s.Disks {
		if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", disk, s.Disk(name, n)).CombinedOutput(); err != nil {
			return fmt.Errorf("copy disk: %w: %s", err, out)
		}
	}
	if err := monitor.Cont(ctx); err != nil {
		return err
	}
	serial, err := net.Dial("unix", s.path("serial"))
	if err != nil {
		return err
	}
	defer serial.Close()
	_, err = serial.Write([]byte("\n"))
	time.Sleep(100 * time.Millisecond) // QEMU has read it before the connection goes
	return err
}
