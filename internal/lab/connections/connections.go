//go:build linux

// Package connections makes crash images for tests: a guest that is full of TCP
// connections and neighbours tells the truth about them, and dies.
package connections

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/connections/truth"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

// Image is the memory that a guest left, and the truth about its connections.
type Image struct {
	RAM string // path of the RAM file of a QEMU q35 machine
	truth.Truth
}

const (
	truthSize = 16 << 20
	memory    = 384 << 20
	limit     = 30 * time.Minute
	tries     = 3 // under emulation a kernel dies now and then, and a machine may be too slow once
)

//go:embed *.go guest/*.go truth/*.go
var sources embed.FS

// Get returns an image from the cache, or makes it. kernel is as in fixture.Spec. The
// test is skipped if this machine lacks what is needed to make it.
func Get(t testing.TB, kernel string, o truth.Order) *Image {
	t.Helper()
	tree := fixture.NeedKernel(t, kernel)
	cache, err := fixture.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "fixtures", fmt.Sprintf("connections-%s-%d-%x", filepath.Base(tree), o.Pairs, key(o)))
	if image, err := load(dir); err == nil {
		return image
	}
	fixture.NeedOrdered(t)
	tier.Say(t, "make an image of %d pairs of connections on %s", o.Pairs, kernel)
	if err := fixture.Again(tries, func() error { return build(t.Context(), dir, tree, o) }); err != nil {
		t.Fatalf("make image of connections: %v", err)
	}
	image, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// key names an image by everything that determines it, except for the kernel.
func key(o truth.Order) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%+v\n%s", o, fixture.OrderedSource)
	_ = fixture.HashSources(h, sources) // they are in the binary
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
	return image, os.Chtimes(dir, now, now) // mark it as used
}

// build makes the image at dir: complete, or not at all.
func build(ctx context.Context, dir, tree string, o truth.Order) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("it takes too long"))
	defer cancel()
	tmp, err := os.MkdirTemp("/dev/shm", "understudy-connections-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	disk := filepath.Join(tmp, "disk")
	if err := os.WriteFile(disk, make([]byte, truthSize), 0o600); err != nil {
		return err
	}
	ram, err := guest(tree, o).Crash(ctx, tmp, disk)
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
	made, err := os.MkdirTemp(filepath.Dir(dir), ".making-") // package fixture removes those that were left behind
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

// guest returns the guest that makes the connections and dies.
func guest(tree string, o truth.Order) fixture.Ordered {
	return fixture.Ordered{
		Name: "connections", Tree: tree, Program: "understudy.dev/understudy/internal/lab/connections/guest", Modules: []string{"dummy", "veth"},
		Order: o, OrderPath: truth.OrderPath, Disk: truth.Disk, Memory: memory, Failed: truth.Failed, NotHeld: truth.NotHeld,
	}
}
