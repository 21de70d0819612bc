package oracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
)

const (
	memory   = 512 << 20 // bytes of a guest
	diskSize = 512 << 20 // bytes
	// bootLimit is how long a guest may take to boot and to fill its disk, and
	// endLimit how long to do what it was told. Both are long for a busy machine.
	bootLimit = 4 * time.Minute
	endLimit  = 10 * time.Minute
)

// Case is one crash.
type Case struct {
	Seed   uint64
	Config Config
	Kernel string // as in fixture.Spec
	Crash  Crash
	// Program is the workload; nil means the oracle's own. The crash is Panic or Kill.
	Program *Program
	// Deaths is how many sides of a pair die, one after the other, and are taken over
	// from; 0 means that the guest is not of a pair, and the rescue comes afterwards.
	Deaths int
}

func (c Case) String() string {
	s := fmt.Sprintf("seed %d, %s, %s, %s", c.Seed, c.Config.Name, c.Kernel, c.Crash)
	if c.Program != nil {
		s += ", " + c.Program.Name
	}
	if c.Deaths > 0 {
		s += fmt.Sprintf(", %d takeovers", c.Deaths)
	}
	return s
}

// guest is a running guest of the oracle with its shared memory.
type guest struct {
	*partition.Process
	page page.Page
}

// images are the initial RAM file systems of this process, by kernel and type of file system.
var images sync.Map

// image packs the guest for a kernel and a configuration's type of file system, once. The programs' disk is an ext4.
func image(kernel string, c Config) (string, error) {
	modules := []string{"ext4", "quota_v2"}
	if c.remakes() {
		modules = append(modules, c.Type)
	}
	pack := sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "understudy-oracle-")
		if err != nil {
			return "", err
		}
		path := filepath.Join(dir, "initrd")
		return path, fixture.Pack(path, "understudy.dev/understudy/internal/lab/oracle/guest", kernel, modules)
	})
	once, _ := images.LoadOrStore([2]string{kernel, c.Type}, pack)
	return once.(func() (string, error))()
}

// CleanUp removes what the oracle keeps from case to case.
func CleanUp() {
	images.Range(func(key, once any) bool {
		if path, err := once.(func() (string, error))(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
		images.Delete(key)
		return true
	})
	if toolsMade.Load() {
		if path, err := toolsDisk(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
}

// start boots a guest that has an order and these disks.
func (c Case) start(ctx context.Context, dir, name string, order page.Order, disks ...partition.Device) (*guest, error) {
	tree, err := fixture.Kernel(c.Kernel)
	if err != nil {
		return nil, err
	}
	initrd, err := image(tree, c.Config)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name+".page")
	b, err := mapFile(path, page.Size)
	if err != nil {
		return nil, err
	}
	g := &guest{}
	if g.page, err = page.Of(b); err == nil {
		err = g.page.Give(order)
	}
	if err == nil {
		var machine pair.Machine
		if machine, err = pair.ThisMachine(); err != nil {
			return nil, errors.Join(err, unix.Munmap(b))
		}
		g.Process, err = partition.Start(ctx, partition.Spec{
			Name: name, Dir: dir, CPUs: machine.CPUs, VCPUs: 2, Memory: memory, Kernel: filepath.Join(tree, "boot", "vmlinuz"),
			Initramfs: initrd, Accel: partition.TCG,
			Devices: append(disks, partition.Memory{Name: "page", Path: path, Size: page.Size}),
		})
	}
	if err != nil {
		_ = unix.Munmap(b)
		return nil, err
	}
	return g, nil
}

// tries is how many times a guest is booted if its kernel dies or hangs of itself before
// it is where it should be: under QEMU 7.2's emulation with several threads, a kernel
// from 6.12 on now and then trips over an int3 while it patches its own code.
const tries = 4

// boot starts a guest and waits until it is in a state. Each try begins with
// prepare.
func (c Case) boot(ctx context.Context, state uint32, prepare func() error, dir, name string, order page.Order, disks ...partition.Device) (*guest, error) {
	for try := 1; ; try++ {
		if err := prepare(); err != nil {
			return nil, err
		}
		g, err := c.start(ctx, dir, name, order, disks...)
		if err != nil {
			return nil, err
		}
		if err = g.await(ctx, state, bootLimit); err == nil {
			return g, nil
		}
		g.end()
		g.release()
		if errors.Is(err, errFailed) || ctx.Err() != nil || try == tries {
			return nil, fmt.Errorf("boot guest: %w", err)
		}
		if err := g.Spec.Remove(); err != nil {
			return nil, err
		}
	}
}

// mapFile makes a file and maps it.
func mapFile(path string, size int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// end kills the guest and waits until it is gone. Its files stay.
func (g *guest) end() {
	g.Kill()
	<-g.Ended()
}

// release gives up the shared memory.
func (g *guest) release() { _ = unix.Munmap(g.page) }

var (
	errFailed = errors.New("guest failed")            // and said why
	errDied   = errors.New("the guest's kernel died") // which was not ordered
)

// await waits until the guest is in a state.
func (g *guest) await(ctx context.Context, state uint32, limit time.Duration) error {
	late := time.After(limit)
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	for {
		switch now := g.page.Load(page.State); {
		case now == page.Failed:
			return fmt.Errorf("%w: %s", errFailed, g.page.Failure())
		case now >= state:
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late:
			return fmt.Errorf("guest takes too long; it said:\n%s", g.said())
		case <-g.Ended():
			return fmt.Errorf("guest ended; it said:\n%s", g.said())
		case <-look.C:
			if g.dead() {
				return fmt.Errorf("%w; it said:\n%s", errDied, g.said())
			}
		case <-time.After(time.Millisecond):
		}
	}
}

// dead reports whether the kernel has panicked.
func (g *guest) dead() bool { return bytes.Contains(g.said(), []byte(partition.PanicEnd)) }

// said returns the last lines of the guest's console.
func (g *guest) said() []byte {
	b, _ := os.ReadFile(g.Spec.ConsoleLogPath()) // may be missing
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-30):], []byte("\n"))
}

// awaitPanic waits until the kernel is dead.
func (g *guest) awaitPanic(ctx context.Context) error {
	late := time.After(endLimit)
	for {
		if g.dead() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late:
			return fmt.Errorf("guest does not die; it said:\n%s", g.said())
		case <-g.Ended():
			return fmt.Errorf("guest ended; it said:\n%s", g.said())
		case <-time.After(time.Millisecond):
		}
	}
}

// uuid returns a UUID that follows from a seed.
func uuid(seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	return fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", r.Uint32(), r.Uint32()>>16, r.Uint32()>>20, r.Uint32()>>20, r.Uint64()>>16)
}
