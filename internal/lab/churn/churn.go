//go:build linux

package churn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
)

// Spec says what transaction is wanted.
type Spec struct {
	Kernel string   // as in fixture.Spec
	Mkfs   []string // the program and its arguments
	Order
}

// State is a file system, and what the transactions in memory make of it.
type State struct {
	Disk    string // path of the disk, after a replay of its log
	Changed map[addr.Block][]byte
	Handles int // open ones
}

const (
	diskSize = 256 << 20
	memory   = 384 << 20
	limit    = 30 * time.Minute
	// tries is how often a state is made that is not what it should be: its kernel died
	// of itself, committed by itself, or had no operation in flight.
	tries = 5
)

//go:embed *.go guest/*.go
var sources embed.FS

// Get returns a state, which it makes unless it is in the cache. The test is
// skipped if this machine lacks what making it takes.
func Get(t testing.TB, s Spec) *State {
	t.Helper()
	tree := fixture.NeedKernel(t, s.Kernel)
	for _, tool := range []string{"qemu-system-x86_64", s.Mkfs[0], "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			tier.Lacks(t, fmt.Sprintf("%v; run scripts/setup.sh", err))
		}
	}
	cache, err := fixture.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "fixtures", "churn-"+key(filepath.Base(tree), s))
	if state, err := load(dir); err == nil {
		return state
	}
	tier.Say(t, "make a crash of %s, seed %d, on %s", strings.Join(s.Mkfs, " "), s.Seed, s.Kernel)
	for try := 1; ; try++ {
		err := build(t.Context(), dir, tree, s)
		if err == nil {
			break
		}
		if !errors.Is(err, errAgain) || try == tries {
			t.Fatalf("make transaction %+v: try %d of %d: %v", s, try, tries, err)
		}
	}
	state, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// errAgain is a guest that did not leave what was ordered, by chance.
var errAgain = errors.New("it did not leave what was ordered")

// key names a state after all that it follows from, but for the timing.
func key(kernel string, s Spec) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %+v\n%s", kernel, s, hold.Source)
	for _, dir := range []string{".", "guest"} {
		entries, _ := sources.ReadDir(dir) // it is in the binary
		for _, e := range entries {
			b, _ := sources.ReadFile(path.Join(dir, e.Name()))
			h.Write(b)
		}
	}
	return fmt.Sprintf("%s-%x", kernel, h.Sum(nil)[:6])
}

func load(dir string) (*State, error) {
	f, err := os.Open(filepath.Join(dir, "state"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	state := &State{}
	if err := gob.NewDecoder(f).Decode(state); err != nil {
		return nil, err
	}
	state.Disk = filepath.Join(dir, "disk")
	now := time.Now()
	return state, os.Chtimes(dir, now, now) // it was used
}

// build makes the state at dir: complete, or not at all.
func build(ctx context.Context, dir, tree string, s Spec) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("it takes too long"))
	defer cancel()
	tmp, err := os.MkdirTemp("/dev/shm", "understudy-churn-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	disk := filepath.Join(tmp, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(disk, diskSize); err != nil {
		return err
	}
	if out, err := exec.Command(s.Mkfs[0], append(s.Mkfs[1:], "-qF", disk)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", s.Mkfs[0], err, out)
	}
	ram, err := crash(ctx, tmp, disk, tree, s)
	if err != nil {
		return err
	}
	state, err := extract(ram, disk)
	if err != nil {
		return err
	}
	if half := s.After > 0; half != (state.Handles > 0) || len(state.Changed) == 0 {
		return fmt.Errorf("%w: %d blocks are changed, and %d handles are open", errAgain, len(state.Changed), state.Handles)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "--sparse=always", disk, filepath.Join(dir, "disk")).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(state); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "state.tmp"), b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(filepath.Join(dir, "state.tmp"), filepath.Join(dir, "state"))
}

// crash has a guest work and die, and returns the path of its memory.
func crash(ctx context.Context, dir, disk, tree string, s Spec) (string, error) {
	order, err := json.Marshal(s.Order)
	if err != nil {
		return "", err
	}
	initrd := filepath.Join(dir, "initrd")
	if err := fixture.Pack(initrd, "understudy.dev/understudy/internal/lab/churn/guest", tree, []string{"ext4"}, initramfs.Text(OrderPath, string(order), 0o644)); err != nil {
		return "", err
	}
	machine, err := pair.ThisMachine()
	if err != nil {
		return "", err
	}
	cpus := machine.Two()
	p, err := partition.Start(ctx, partition.Spec{
		Name: "churn", Dir: dir, CPUs: cpus[:], VCPUs: 2, Memory: memory, Kernel: filepath.Join(tree, "boot", "vmlinuz"),
		Initramfs: initrd, Accel: partition.TCG, Devices: []partition.Device{partition.Disk{Name: Disk, Image: disk}},
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
		case bytes.Contains(said, []byte(Failed)):
			return "", fmt.Errorf("the guest said: %s", tail(said))
		case bytes.Contains(said, []byte(NotHeld)):
			return "", fmt.Errorf("%w; the guest said: %s", errAgain, tail(said))
		case bytes.Contains(said, []byte(partition.PanicEnd)):
			if !bytes.Contains(said, []byte("sysrq triggered crash")) {
				return "", fmt.Errorf("%w: its kernel died; it said: %s", errAgain, tail(said))
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

// Copy writes a state's disk to a path, with the changed blocks in their places,
// as a file with holes.
func (s *State) Copy(path string, changed map[addr.Block][]byte) error {
	if out, err := exec.Command("cp", "--sparse=always", s.Disk, path).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for b, data := range changed {
		if _, err := f.WriteAt(data, int64(b)*int64(len(data))); err != nil {
			return err
		}
	}
	return nil
}
