//go:build linux

package churn

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/tier"
)

// Spec says what transaction is wanted.
type Spec struct {
	Kernel string   // as in fixture.Spec
	Mkfs   []string // the program and its arguments
	Order
}

// State is a file system on a disk, and the blocks that the transactions in memory change.
type State struct {
	Disk    string // path of the disk, after a replay of its log
	Changed map[addr.Block][]byte
	Handles int // number of open ones
}

const (
	diskSize = 256 << 20
	memory   = 384 << 20
	limit    = 30 * time.Minute
	// tries is how often making a state is tried. A state is unusable if its kernel died
	// of itself, committed by itself, or had no operation in flight.
	tries = 20
)

//go:embed *.go guest/*.go
var sources embed.FS

// Get returns a state from the cache, or makes it. The test is skipped if this machine
// lacks what is needed to make it.
func Get(t testing.TB, s Spec) *State {
	t.Helper()
	tree := fixture.NeedKernel(t, s.Kernel)
	fixture.NeedOrdered(t, s.Mkfs[0])
	cache, err := fixture.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "fixtures", "churn-"+key(filepath.Base(tree), s))
	if state, err := load(dir); err == nil {
		return state
	}
	tier.Say(t, "make a crash of %s, seed %d, on %s", strings.Join(s.Mkfs, " "), s.Seed, s.Kernel)
	if err := fixture.Again(tries, func() error { return build(t.Context(), dir, tree, s) }); err != nil {
		t.Fatalf("make transaction %+v: %v", s, err)
	}
	state, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// key names a state by everything that determines it, except for the timing.
func key(kernel string, s Spec) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %+v\n%s%s", kernel, s, hold.Source, fixture.OrderedSource)
	_ = fixture.HashSources(h, sources) // they are in the binary
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
	return state, os.Chtimes(dir, now, now) // mark it as used
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
	ram, err := s.guest(tree).Crash(ctx, tmp, disk)
	if err != nil {
		return err
	}
	state, err := extract(ram, disk)
	if errors.Is(err, journal.ErrDamaged) { // it may have died in the middle of a change of jbd2's lists
		return fmt.Errorf("%w: %w", fixture.ErrAgain, err)
	}
	if err != nil {
		return err
	}
	if half := s.After > 0; half != (state.Handles > 0) || len(state.Changed) == 0 {
		return fmt.Errorf("%w: %d blocks are changed, and %d handles are open", fixture.ErrAgain, len(state.Changed), state.Handles)
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

// guest returns the guest that does the work and dies.
func (s Spec) guest(tree string) fixture.Ordered {
	return fixture.Ordered{
		Name: "churn", Tree: tree, Program: "understudy.dev/understudy/internal/lab/churn/guest", Modules: []string{"ext4"},
		Order: s.Order, OrderPath: OrderPath, Disk: Disk, Memory: memory, Failed: Failed, NotHeld: NotHeld,
	}
}

// Copy copies a state's disk to a path, as a file with holes, and writes the changed
// blocks to it.
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
