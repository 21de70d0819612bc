package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/unit"
	"understudy.dev/understudy/internal/live/wire"
)

// side is one partition with its agent.
type side struct {
	index    int // of its partition in the pair
	name     string
	spec     partition.Spec
	process  *partition.Process
	agent    *wire.Conn
	muted    bool // agent answers nothing
	greeting wire.Greeting
	taps     []string
	tapFiles []*os.File
	beat     []byte                  // the beat page
	troubles chan wire.TroubleNotice // what does not work on it, as its agent says

	died    *liveness.Verdict // how it died, if it was dead and stopped when we took charge of it; otherwise nil
	counted uint64            // the beat's count when the watcher last looked
	rested  uint64            // the beat's count when it was last told not to beat slowly any more; 0 if it never was

	// Read by others, too: when that count changed, when the watcher last looked, and the
	// longest silence that ended. nil means not yet.
	beaten, looked atomic.Pointer[time.Time]
	left           atomic.Pointer[time.Time] // when its agent left its port; nil if it is there
	longest        atomic.Int64              // ns
}

// maxTroubles is how many troubles may wait to be reported.
const maxTroubles = 16

// boot starts partition i. The active side gets the disks themselves, the understudy gets
// their vacancies and the staging disk.
func (s *Supervisor) boot(ctx context.Context, i int, active bool) (*side, error) {
	for try := 1; ; try++ {
		sd, err := s.bootOnce(ctx, i, active)
		if !errors.Is(err, errBootPanic) && !errors.Is(err, errBootHang) || try == bootTries {
			return sd, err
		}
		s.log("%v; it is booted again", err)
	}
}

func (s *Supervisor) bootOnce(ctx context.Context, i int, active bool) (*side, error) {
	p := s.Pair.Partitions[i]
	accel, err := s.findAccel(ctx, p)
	if err != nil {
		return nil, err
	}
	sd := &side{index: i, name: p.Name, troubles: make(chan wire.TroubleNotice, maxTroubles)}
	spec := s.spec(i, accel)
	sd.spec = spec // its files are removed with the side, if what follows fails
	spec.Devices, err = s.devices(ctx, sd, i, active)
	if err == nil {
		s.log("partition %s: %s", p.Name, spec.CommandLine())
		err = sd.boot(ctx, spec, s.config(p.Name), s.options.Notice)
	}
	if err == nil {
		err = s.haveDisks(sd)
	}
	if err == nil && spec.Outlives {
		err = s.recordSide(sd)
	}
	if err != nil {
		return nil, errors.Join(err, sd.close())
	}
	return sd, nil
}

// spec returns the Spec of partition i, without its devices.
func (s *Supervisor) spec(i int, accel partition.Accel) partition.Spec {
	p := s.Pair.Partitions[i]
	if p.Root != "" {
		p.Append += " " + unit.PairParameter + "=" + s.Pair.Name
	}
	return partition.Spec{
		Name: p.Name, Dir: s.options.Dir, CPUs: p.CPUs, VCPUs: p.VCPUs, Memory: p.Memory,
		Kernel: p.Kernel, Initramfs: p.Initramfs, Append: p.Append, Accel: accel,
		Outlives: s.options.Outlive,
	}
}

// recordSide records the process of a side.
func (s *Supervisor) recordSide(sd *side) error {
	id, err := sd.process.Identity()
	if err != nil {
		return err
	}
	return s.record(func(r *Record) {
		r.Sides = slices.DeleteFunc(r.Sides, func(rs RecordSide) bool { return rs.Name == sd.name })
		r.Sides = append(r.Sides, RecordSide{Name: sd.name, Identity: id, Accel: sd.spec.Accel})
	})
}

// boot starts the partition and returns when its agent has greeted and is
// configured.
func (sd *side) boot(ctx context.Context, spec partition.Spec, c wire.Config, notice Notice) (err error) {
	sd.spec = spec
	if sd.process, err = partition.Start(ctx, spec); err != nil {
		return err
	}
	if err := sd.dropTaps(); err != nil {
		return err
	}
	if sd.beat, err = mapBeat(spec.BeatPath()); err != nil {
		return err
	}
	booting, booted := context.WithCancelCause(ctx)
	go sd.awaitPanic(booting, booted)
	go sd.awaitHang(booting, booted)
	err = sd.meet(booting, notice, bootLimit)
	booted(nil)
	if err != nil {
		return fmt.Errorf("%w; the end of its console:\n%s", err, tail(spec.ConsoleLogPath()))
	}
	if err := able(sd.greeting, c); err != nil {
		return fmt.Errorf("start partition %s: %w", sd.name, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, configureLimit, fmt.Errorf("not done within %v", configureLimit))
	defer cancel()
	return sd.agent.Call(ctx, wire.Configure, c, nil)
}

// tailLines is how many lines are enough to see what a guest died of.
const tailLines = 20

// tail returns the end of a text file, for people.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := slices.Collect(strings.Lines(string(b)))
	return strings.Join(lines[max(0, len(lines)-tailLines):], "")
}

// Limits for what an agent does while nothing has crashed: they only end what hangs, as bootLimit
// does. The services themselves have their own limits there, of systemd and of the agent.
const (
	configureLimit = bootLimit
	startLimit     = bootLimit // for services, including NFS
)

// startAnswer is how much longer than the services the agent's answer may take in a takeover.
const startAnswer = 4 * time.Minute

// able checks that a guest has the programs that its disks may need.
func able(g wire.Greeting, c wire.Config) error {
	for _, d := range c.Disks {
		for _, p := range d.Programs() {
			if !slices.Contains(g.Layers, p) {
				return hint.New("guest", fmt.Errorf("it has no %s, which the layers (md, LUKS, LVM) under the file system of disk %s need", p, d.Name),
					"Build its image again with understudy initramfs --under, or install it there.")
			}
		}
	}
	ext := slices.ContainsFunc(c.Disks, func(d wire.Disk) bool { return strings.HasPrefix(d.Type, "ext") })
	if !ext || g.Checker {
		return nil
	}
	return hint.New("guest", errors.New("it has no "+wire.Checker+", without which a file system with handles open at the crash could not be mounted"),
		"Build its image again with understudy initramfs, or install e2fsprogs in it.")
}

func (s *Supervisor) devices(ctx context.Context, side *side, i int, active bool) ([]partition.Device, error) {
	var devices []partition.Device
	if root := s.Pair.Partitions[i].Root; root != "" {
		devices = append(devices, partition.Disk{Name: "root", Image: root})
	}
	for _, d := range s.Pair.Disks {
		for n, image := range d.Images() {
			if err := s.holds[image].Named(); err != nil {
				return nil, err
			}
			disk := partition.Disk{Name: d.Serials()[n], Image: image}
			if active {
				devices = append(devices, disk)
				continue
			}
			size, err := device.ImageSize(image)
			if err != nil {
				return nil, err
			}
			devices = append(devices, partition.Vacancy{Disk: disk, Size: size})
		}
	}
	if !active {
		devices = append(devices, partition.Disk{Name: wire.StagingDisk, Image: s.staging.Path(), ReadOnly: true})
		rehearsals, err := s.makeRehearsals(ctx, side.name)
		if err != nil {
			return nil, err
		}
		devices = append(devices, rehearsals...)
	}
	for n, nic := range s.Pair.NICs {
		name := tapName(s.Pair.Name, i, n)
		tap, err := s.options.Network.Tap(name, tapMAC(s.Pair.Name, n))
		if err != nil {
			return nil, fmt.Errorf("make tap for %s: %w", nic.Name, err)
		}
		side.taps = append(side.taps, name)
		side.tapFiles = append(side.tapFiles, tap)
		devices = append(devices, partition.NIC{Name: nic.Name, MAC: nic.MAC, Tap: tap})
	}
	if s.options.Devices == nil {
		return devices, nil
	}
	more, err := s.options.Devices(side.name, active)
	return append(devices, more...), err
}

// tapName returns the name of a tap, which fits in the 15 characters of an interface name.
func tapName(pair string, side, nic int) string {
	h := fnv.New32a()
	h.Write([]byte(pair))
	return fmt.Sprintf("us%08x%c%d", h.Sum32(), "lr"[side], nic)
}

// tapMAC returns the address of a tap, the host's end of the cable, which is the same for both sides. A bridge that
// was not given an address takes the lowest of its ports' addresses (net/bridge/br_stp_if.c,
// br_stp_recalculate_bridge_id). That should be another port's, if there is one, and must not change in a takeover.
func tapMAC(pair string, nic int) net.HardwareAddr {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%d", pair, nic)
	mac := h.Sum(nil)[:6]
	mac[0] = 0xfe
	return mac
}

func mapBeat(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.Mmap(int(f.Fd()), 0, liveness.PageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// errRestarted means that an agent does not answer a call because it was restarted.
var errRestarted = errors.New("the agent was started again meanwhile")

// dial connects to a socket that QEMU creates as it starts.
func dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// meet connects to the agent and waits for its greeting, within a limit.
func (sd *side) meet(ctx context.Context, notice Notice, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the agent of partition %s did not greet within %v", sd.name, limit))
	defer cancel()
	stream, err := dial(ctx, sd.process.Spec.AgentPath())
	if err != nil {
		return fmt.Errorf("reach agent of partition %s: %w", sd.name, err)
	}
	greeted, met := make(chan wire.Greeting, 1), false
	sd.agent = wire.New(stream, wire.FromAgent, func(_ context.Context, verb string, body json.RawMessage) (any, error) {
		if verb == wire.Hello {
			var g wire.Greeting
			if err := json.Unmarshal(body, &g); err != nil {
				return nil, err
			}
			if met { // the agent was restarted
				sd.agent.Abandon(errRestarted)
				return nil, nil
			}
			met = true // no lock is needed: notices come one after the other
			greeted <- g
			return nil, nil
		}
		if verb == wire.Trouble {
			var t wire.TroubleNotice
			if err := json.Unmarshal(body, &t); err != nil {
				return nil, err
			}
			select {
			case sd.troubles <- t:
			default: // enough of them wait already
			}
			return nil, nil
		}
		if notice != nil {
			notice(sd.name, verb, body)
		}
		return nil, nil
	})
	served := make(chan error, 1)
	go func() { served <- sd.agent.Serve(context.WithoutCancel(ctx)) }() // when it ends, so do all calls, with the reason
	select {
	case sd.greeting = <-greeted:
		return nil
	case err := <-served:
		if err == nil { // QEMU has closed the connection, and is ending
			return sd.endedEarly()
		}
		return fmt.Errorf("reach agent of partition %s: connection lost: %w", sd.name, err)
	case <-sd.process.Ended():
		return sd.endedEarly()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// endedEarly says how the process of a side that has not greeted yet ended.
func (sd *side) endedEarly() error {
	select {
	case <-sd.process.Ended():
	case <-time.After(endLimit):
		return fmt.Errorf("reach agent of partition %s: QEMU has closed the connection", sd.name)
	}
	return fmt.Errorf("partition %s ended while it booted: %s%s", sd.name, sd.ending(), sd.process.LastWords())
}

// ending says how a side's process ended.
func (sd *side) ending() string {
	if err := sd.process.Status(); err != nil {
		return "QEMU ended with " + err.Error()
	}
	return "QEMU ended in good order, as when a guest resets itself"
}

// config returns the configuration of a side. It is the same for both sides: what each role needs is known in advance.
func (s *Supervisor) config(name string) wire.Config {
	h := s.Pair.Heartbeat
	c := wire.Config{Partition: name, Beat: wire.Beat{Period: h.Period, CPU: h.CPU, Scheduler: h.Scheduler, Disk: h.Disk}}
	for _, d := range s.Pair.Disks {
		c.Disks = append(c.Disks, wire.Disk{Name: d.Name, Part: d.Part, Mirror: d.MirrorName(), LUKS: d.LUKS, Volume: d.LVM, Type: string(d.Type), Mount: d.Mount, Options: d.Options})
	}
	for _, n := range s.Pair.NICs {
		c.NICs = append(c.NICs, nicConfig(&n))
	}
	for _, v := range s.Pair.Services {
		c.Services = append(c.Services, wire.Service{Name: v.Name, Command: v.Command, Unit: v.Unit, Ready: v.Ready, Stop: v.Stop, Unrehearsed: !v.Rehearse})
	}
	if n := s.Pair.NFS; n != nil {
		c.NFS = &wire.NFS{Host: s.Pair.Name, Exports: n.Exports, State: n.State, Lease: n.Lease, Grace: n.Grace, Threads: n.Threads, UDP: n.UDP}
	}
	return c
}

// mount lets the side mount a disk. With check, e2fsck(8) checks the disk first, and its report is returned.
func (sd *side) mount(ctx context.Context, disk string, check bool) (*wire.Check, error) {
	var result wire.MountResult
	err := sd.agent.Call(ctx, wire.Mount, wire.MountRequest{Disk: disk, Check: check}, &result)
	return result.Check, err
}

// activate lets a side set up the device that the file system of one of its disks is on, and
// returns the size of that device.
func (sd *side) activate(ctx context.Context, disk string) (size int64, err error) {
	var result wire.ActivateResult
	err = sd.agent.Call(ctx, wire.Activate, wire.ActivateRequest{Disk: disk}, &result)
	return result.Size, err
}

// mountLimit is how long a mount without a check may take.
const mountLimit = 15 * time.Minute

// mountLimited lets the side mount a disk that was not in use in a crash.
func (sd *side) mountLimited(ctx context.Context, disk string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, mountLimit, fmt.Errorf("not done within %v", mountLimit))
	defer cancel()
	_, err := sd.mount(ctx, disk, false)
	return err
}

// startServices starts the services. If within is 0, each of them must become ready.
func (sd *side) startServices(ctx context.Context, within time.Duration) ([]wire.Unready, error) {
	limit := startLimit
	if within > 0 {
		limit = within + startAnswer
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %v", limit))
	defer cancel()
	var result wire.StartResult
	err := sd.agent.Call(ctx, wire.Start, wire.StartRequest{Within: within}, &result)
	return result.Unready, err
}

func (sd *side) stop(ctx context.Context) error {
	if err := sd.reach(ctx); err != nil {
		return err
	}
	return sd.agent.Call(ctx, wire.Stop, nil, nil)
}

// crash does not wait for an answer: a kernel that died gives none.
func (sd *side) crash(silent bool) error {
	return sd.agent.Notify(wire.Crash, wire.CrashRequest{Silent: silent})
}

func (sd *side) setDisk(ctx context.Context, name string) error {
	return device.SetDisk(ctx, sd.process.QMP, partition.Disk{Name: name})
}

// end ends the side's process. Its memory file and its logs stay.
func (sd *side) end() error {
	if sd.agent != nil {
		_ = sd.agent.Close() // it may be closed
	}
	if sd.process != nil {
		sd.process.Kill()
		select {
		case <-sd.process.Ended():
		case <-time.After(endLimit):
			return fmt.Errorf("partition %s: process %d has not ended %v after SIGKILL: it may still have the disks", sd.name, sd.process.PID(), endLimit)
		}
	}
	var err error
	if sd.beat != nil {
		err = unix.Munmap(sd.beat)
		sd.beat = nil
	}
	return errors.Join(err, sd.dropTaps())
}

// endLimit is how long a process may take to end after SIGKILL.
const endLimit = 20 * time.Second

// close ends the side and removes what it left.
func (sd *side) close() error {
	err := sd.end()
	if sd.spec.Name != "" { // otherwise it never had any files
		err = errors.Join(err, sd.spec.Remove())
	}
	return err
}

// dropTaps closes our copies of the taps' file descriptors. From then on the taps exist as
// long as QEMU does, and the bridge forgets a dead side's address by itself.
func (sd *side) dropTaps() error {
	var errs []error
	for _, tap := range sd.tapFiles {
		errs = append(errs, tap.Close())
	}
	sd.tapFiles = nil
	return errors.Join(errs...)
}
