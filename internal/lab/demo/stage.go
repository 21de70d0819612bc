package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/lab/workload"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/guest"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

const (
	serviceAddress = "10.77.0.2"
	serviceMAC     = "52:54:00:75:64:01"
	clientPrefix   = "10.77.0.1/24"
	serveDir       = "/srv"
	imageBytes     = 1 << 30
)

// describe is the demo's pair.yaml, which looks like a user's.
const describe = `name: %s
partitions:
  left:  {cpus: "%d", memory: 768MiB, kernel: %[4]s, initramfs: %[5]s}
  right: {cpus: "%[3]d", vcpus: 2, memory: 768MiB, kernel: %[4]s, initramfs: %[5]s}
disks:
  - {name: data, image: data.img, type: %[6]s, mount: /srv}
nics:
  - {name: lan, mac: "` + serviceMAC + `", address: ` + serviceAddress + `/24, gateway: 10.77.0.1, bridge: br0}
services:
  - {name: web, command: [busybox, httpd, -f, -p, "80", -h, /srv], ready: 80}
heartbeat: %[8]s
takeover: {salvage: %[7]t, sync: after}
`

// impatient is the demo's heartbeat. patient is that for a machine which is emulated itself:
// there silence is no death, since nothing tells that the guests' CPUs stood still.
const (
	impatient = "{period: 20ms, limit: 300ms}"
	patient   = "{period: 1s, limit: 1m, cpu: 1h, scheduler: 1h, disk: 1h}"
)

// stage is what a run plays on: a directory with the disk and the pair's description, its
// own networks, and the running pair.
type stage struct {
	o      Options
	dir    string
	pair   *pair.Pair
	lab    *netlab.Lab
	super  *supervisor.Supervisor
	began  time.Time
	heard  map[string]*bytes.Buffer // notices by partition and verb
	mu     sync.Mutex
	fenced func()
}

func (o Options) newStage(ctx context.Context) (s *stage, err error) {
	s = &stage{o: o, heard: make(map[string]*bytes.Buffer), began: time.Now()}
	s.say("boot the pair: %s on the shared disk, seed %d", o.FS, o.Seed)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.dir, err = netlab.WorkDir("demo-"); err != nil {
		return s, err
	}
	if err := s.describe(ctx); err != nil {
		return s, err
	}
	if s.lab, err = netlab.NewLab(netip.MustParsePrefix(clientPrefix)); err != nil {
		return s, err
	}
	s.super, err = supervisor.Start(ctx, s.pair, supervisor.Options{
		Dir: dirs.Run(s.pair.Name), Network: s.lab.Services,
		Notice: s.notice, Fenced: func() { s.fenced() }, Log: o.Log,
	})
	return s, err
}

// describe makes the disk and the pair's description, and loads the description as a
// user's would be loaded.
func (s *stage) describe(ctx context.Context) error {
	image := filepath.Join(s.dir, "data.img")
	if err := makeImage(ctx, s.o.FS, image); err != nil {
		return err
	}
	initrd := filepath.Join(s.dir, "guest.cpio")
	kernel, modules, err := dirs.Kernel(s.o.Kernel)
	if err != nil {
		return err
	}
	if err := (guest.Image{Modules: modules}).WriteFile(initrd); err != nil {
		return err
	}
	m, err := pair.ThisMachine()
	if err != nil {
		return err
	}
	cpus := m.Two()
	name := strings.ToLower(filepath.Base(s.dir))
	heartbeat := impatient
	if s.o.Patient {
		heartbeat = patient
	}
	text := fmt.Sprintf(describe, name, cpus[0], cpus[1], kernel, initrd, s.o.FS, !s.o.NoSalvage, heartbeat)
	file := filepath.Join(s.dir, "pair.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	if s.pair, err = pair.Load(file); err != nil {
		return err
	}
	return s.pair.Check(m)
}

func makeImage(ctx context.Context, fs, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(imageBytes), f.Close()); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mkfs."+fs, "-q", "-F", path).CombinedOutput(); err != nil {
		return fmt.Errorf("make %s: %w: %s (package e2fsprogs has it)", fs, err, out)
	}
	return nil
}

// notice keeps what guests report, without decoding it.
func (s *stage) notice(partition, verb string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := partition + " " + verb
	if s.heard[key] == nil {
		s.heard[key] = new(bytes.Buffer)
	}
	s.heard[key].Write(body)
	s.heard[key].WriteByte('\n')
}

// read decodes what a guest reported by one verb.
func (s *stage) read(partition, verb string) ([]workload.Truth, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.heard[partition+" "+verb]
	if b == nil {
		return nil, fmt.Errorf("partition %s sent no %s", partition, verb)
	}
	return workload.ReadAll(b)
}

func (s *stage) close() error {
	var errs []error
	if s.super != nil {
		errs = append(errs, s.super.Discard(), s.super.Close())
	}
	if s.lab != nil {
		errs = append(errs, s.lab.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}
