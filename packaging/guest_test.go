package packaging_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/barelab"
	"understudy.dev/understudy/internal/lab/systems"
	"understudy.dev/understudy/internal/lab/tier"
)

// next makes the package again, of a version that is higher.
func next(t *testing.T, deb, to string) {
	t.Helper()
	tree := t.TempDir()
	run(t, ".", "dpkg-deb", "-R", deb, tree)
	control := filepath.Join(tree, "DEBIAN", "control")
	b, err := os.ReadFile(control)
	if err != nil {
		t.Fatal(err)
	}
	before, after, ok := bytes.Cut(b, []byte("\nVersion: "))
	version, rest, _ := bytes.Cut(after, []byte("\n"))
	if !ok {
		t.Fatalf("no version: %s", b)
	}
	b = bytes.Join([][]byte{before, []byte("\nVersion: "), version, []byte("+next\n"), rest}, nil)
	if err := os.WriteFile(control, b, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, ".", "dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, to)
}

// TestInstalled: on a fresh Debian 12, who has the package and its manual pages comes to a pair that
// is protected, sees a takeover that loses nothing, upgrades without an outage, stops the pair,
// and is rid of the package. guest/follow.sh is what is done; its guests are emulated in an
// emulated machine, which takes long.
func TestInstalled(t *testing.T) {
	tier.Full(t, "a pair in a guest")
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		tier.Lacks(t, err)
	}
	root, err := systems.Find(t.Context(), "host")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	run(t, "..", "scripts/deb.sh", in("deb"))
	found, err := filepath.Glob(in("deb/*.deb"))
	if err != nil || len(found) != 1 {
		t.Fatalf("made %v, %v", found, err)
	}
	next(t, found[0], in("second.deb"))
	run(t, ".", "cp", "--sparse=always", root.Image, in("disk.img"))
	err = barelab.PutAt(in("disk.img"), 0, []barelab.File{
		{Path: "/lab/first.deb", Source: found[0]}, {Path: "/lab/second.deb", Source: in("second.deb")},
		{Path: "/lab/follow.sh", Source: "guest/follow.sh"}, {Path: "/lab/put", Source: "guest/put", Executable: true},
		{Path: "/etc/systemd/system/lab.service", Source: "guest/lab.service"},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := barelab.Machine{Kernel: root.Kernel, Image: root.Initramfs, Dir: dir, CPUs: 2,
		Append:  "root=LABEL=root ro systemd.wants=lab.service systemd.mask=serial-getty@ttyS0.service " + systems.Nested,
		Devices: []string{"-drive", "if=virtio,format=raw,cache=unsafe,file=" + in("disk.img")}}
	r, err := m.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Wait() }()
	said := 0
	for ran := false; !ran; {
		select {
		case err = <-ended:
			ran = true
		case <-t.Context().Done():
			err, ran = errors.Join(t.Context().Err(), r.Stop()), true
		case <-time.After(5 * time.Second):
		}
		console := r.Console()
		whole := console[:strings.LastIndex(console, "\n")+1]
		for line := range strings.Lines(whole[min(said, len(whole)):]) {
			if strings.HasPrefix(line, "STEP ") {
				tier.Say(t, "%s", strings.TrimSpace(line))
			}
		}
		said = len(whole)
	}
	if console := r.Console(); err != nil || !strings.Contains(console, "\nDONE") {
		t.Errorf("%v; the console: %s", err, console)
	}
}
