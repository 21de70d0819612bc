//go:build linux

// Package switchboard makes crash images for tests: a guest that is full of TCP
// connections and neighbours tells the truth about them, and dies.
package switchboard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/switchboard/truth"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
)

// Image is what a guest left.
type Image struct {
	RAM string // path of the RAM file of a QEMU q35 machine
	truth.Truth
}

const (
	truthSize = 16 << 20
	memory    = 384 << 20
	limit     = 30 * time.Minute
	tries     = 3 // emulation fells a kernel now and then, and a machine may be too slow once
)

//go:embed *.go guest/*.go truth/*.go
var sources embed.FS

// Get returns an image, which it makes unless it is in the cache. kernel is as in
// fixture.Spec. The test is skipped if this machine lacks what making it takes.
func Get(t testing.TB, kernel string, o truth.Order) *Image {
	t.Helper()
	tree := fixture.NeedKernel(t, kernel)
	cache, err := fixture.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "fixtures", fmt.Sprintf("switchboard-%s-%d-%x", filepath.Base(tree), o.Pairs, key(o)))
	if image, err := load(dir); err == nil {
		return image
	}
	for _, tool := range []string{"qemu-system-x86_64", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			tier.Lacks(t, fmt.Sprintf("%v; run scripts/setup.sh", err))
		}
	}
	tier.Say(t, "make an image of %d pairs of connections on %s", o.Pairs, kernel)
	for try := 1; ; try++ {
		err := build(t.Context(), dir, tree, o)
		if err == nil {
			break
		}
		if !errors.Is(err, errDied) && !errors.Is(err, errNotHeld) || try == tries {
			t.Fatalf("make image of connections: try %d of %d: %v", try, tries, err)
		}
	}
	image, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// key names an image after all that it follows from but for the kernel.
func key(o truth.Order) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%+v\n", o)
	_ = fs.WalkDir(sources, ".", func(path string, d fs.DirEntry, err error) error { // it is in the binary
		if !d.IsDir() {
			b, _ := sources.ReadFile(path)
			fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		}
		return err
	})
	return h.Sum(nil)[:6]
}

func load(dir string) (*Image, error) {
	b, err := os.ReadFile(filepath.Join(dir, "truth"))
	if err != nil {
		return nil, err
	}
	image := &Image{RAM: filepath.Join(dir, "ram")}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&image.Truth); err != nil {
		return nil, err
	}
	now := time.Now()
	return image, os.Chtimes(dir, now, now) // it was used
}

// build makes the image at dir: complete, or not at all.
func build(ctx context.Context, dir, tree string, o truth.Order) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("it takes too long"))
	defer cancel()
	tmp, err := os.MkdirTemp("/dev/shm", "understudy-switchboard-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	disk := filepath.Join(tmp, "disk")
	if err := os.WriteFile(disk, make([]byte, truthSize), 0o600); err != nil {
		return err
	}
	ram, err := crash(ctx, tmp, disk, tree, o)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(disk)
	if err != nil {
		return err
	}
	return keep(dir, ram, bytes.TrimRight(b, "\x00"))
}

// keep puts an image in its place as a whole. If another process was faster, its
// image stays.
func keep(dir, ram string, tell []byte) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	made, err := os.MkdirTemp(filepath.Dir(dir), ".making-") // which package fixture clears away
	if err != nil {
		return err
	}
	defer os.RemoveAll(made)
	if out, err := exec.Command("cp", "--sparse=always", ram, filepath.Join(made, "ram")).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(made, "truth"), tell, 0o644); err != nil {
		return err
	}
	if err := os.Chmod(made, 0o755); err != nil {
		return err
	}
	if err := os.Rename(made, dir); err != nil {
		if _, failed := load(dir); failed == nil {
			return nil
		}
		return err
	}
	return nil
}

var (
	// errDied is a panic that the guest did not ask for.
	errDied = errors.New("its kernel died too early")
	// errNotHeld is a guest that does not have what tests rely on any more.
	errNotHeld = errors.New("it was too slow")
)

// crash has a guest connect and die, and returns the path of its memory.
func crash(ctx context.Context, dir, disk, tree string, o truth.Order) (string, error) {
	order, err := json.Marshal(o)
	if err != nil {
		return "", err
	}
	initrd := filepath.Join(dir, "initrd")
	modules := []string{"dummy", "veth"}
	if err := fixture.Pack(initrd, "understudy.dev/understudy/internal/lab/switchboard/guest", tree, modules, initramfs.Text(truth.OrderPath, string(order), 0o644)); err != nil {
		return "", err
	}
	machine, err := pair.ThisMachine()
	if err != nil {
		return "", err
	}
	cpus := machine.Two()
	p, err := partition.Start(ctx, partition.Spec{
		Name: "switchboard", Dir: dir, CPUs: cpus[:], VCPUs: 2, Memory: memory, Kernel: filepath.Join(tree, "boot", "vmlinuz"),
		Initramfs: initrd, Accel: partition.TCG, Devices: []partition.Device{partition.Disk{Name: truth.Disk, Image: disk}},
	})
	if err != nil {
		return "", err
	}
	defer func() {
		p.Kill()
		<-p.Ended()
	}()
	for {
		said, _ := os.ReadFile(p.Spec.ConsoleLogPath()) // not there yet
		switch {
		case bytes.Contains(said, []byte(truth.NotHeld)):
			return "", fmt.Errorf("%w; it said: %s", errNotHeld, tail(said))
		case bytes.Contains(said, []byte(truth.Failed)):
			return "", fmt.Errorf("the guest said: %s", tail(said))
		case bytes.Contains(said, []byte(partition.PanicEnd)):
			if !bytes.Contains(said, []byte("sysrq triggered crash")) {
				return "", fmt.Errorf("%w; it said: %s", errDied, tail(said))
			}
			return p.Spec.RAMPath(), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w; the guest said: %s", context.Cause(ctx), tail(said))
		case <-p.Ended():
			return "", fmt.Errorf("the guest ended: %s", tail(said))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func tail(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
