// Package supervisor runs a pair: it boots both sides, protects the active one,
// watches over it, and takes over when it dies.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/netns"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// bootLimit is how long a partition may take until its agent greets. It only ends what hangs: a
// boot may take many minutes on a machine that is busy, or emulated itself.
const bootLimit = 30 * time.Minute

// rehearsals is how often a takeover is rehearsed: once is enough to prove that it works.
const rehearsals = 1

// Notice receives what an agent reports with verbs other than the supervisor's own.
type Notice func(partition, verb string, body []byte)

// Options are what a supervisor needs besides the pair's own description.
type Options struct {
	// Dir is a directory on a tmpfs for sockets, logs and memory files. It is created, and
	// removed with everything in it by Close.
	Dir string
	// Network has the bridges of the pair's NICs; nil means the host's own network.
	Network *netns.Namespace
	Notice  Notice
	// Fenced is called in a takeover when the fence stands.
	Fenced func()
	// Progress is called in a takeover when the progress of a disk has been recorded.
	Progress func(disk string, p takeover.Progress)
	// Held is told why the active side or the understudy stands still, if something else keeps
	// it from running, so that it is not dead, and "" when it continues. It may be nil.
	Held func(understudy bool, why string)
	// Outlive lets the guests go on when this process ends without shutting them down: Reconnect
	// takes charge of them again.
	Outlive bool
	// Trouble is told what does not work on a side, as its agent says. It may be nil.
	Trouble func(wire.TroubleNotice)
	// Rescue brings to a partition's own root disk, which nobody uses, the data that only its kernel's
	// memory, in a file, has. It fails with ErrPartly if it could not bring all of it. It may be nil.
	Rescue func(ctx context.Context, disk, memory string) error
	// Settle finishes an interrupted commit to a disk that nobody uses, without the memory that the
	// commit was from. It may be nil.
	Settle func(ctx context.Context, disk string) error
	// Devices returns further devices for a partition that is about to boot. It may be nil.
	Devices func(partition string, active bool) ([]partition.Device, error)
	// Log is for the operator.
	Log io.Writer
}

// Supervisor is a running pair.
type Supervisor struct {
	Pair *pair.Pair

	options   Options
	dir       *RunDir
	holds     map[string]*fence.Hold // of disks, by path; held from start to end
	roots     map[string]*fence.Hold // of root images, likewise, except while one is rescued; used by Protect
	staging   *device.Staging
	crashLoop crashLoop
	hurry     chan struct{} // ends Protect's pause

	recording sync.Mutex // protects the record, and unrecorded
	// unrecorded makes the changes that could not be recorded: what needs a dead side's memory,
	// and who serves. It is nil if everything is recorded.
	unrecorded func(*Record)

	mu         sync.Mutex               // protects the fields below, which others than the watcher use, too
	sides      [2]*side                 // nil if nothing runs in that partition, or has died there
	active     *side                    // the side with the shared devices
	understudy *side                    // nil if there is none
	morgue     *morgue.Morgue           // of the active side; nil if its kernel has not been looked for yet
	reads      map[string]chan struct{} // our own reads of images that are under way, by disk
	crashed    time.Time                // when a crash was asked for
	frozen     bool                     // the active side is dead, and stopped until there is an understudy
	prepared   bool                     // the active side's kernel was found in its memory
	lost       map[string]string        // what was reported of disks that have lost their paths, of the network, and of lostKernel
}

// roles returns the active side and the understudy, for callers that do not change them.
func (s *Supervisor) roles() (active, understudy *side) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active, s.understudy
}

// newSupervisor returns a supervisor that holds nothing yet.
func newSupervisor(p *pair.Pair, o Options, dir *RunDir) *Supervisor {
	return &Supervisor{
		Pair: p, options: o, dir: dir,
		holds: make(map[string]*fence.Hold), roots: make(map[string]*fence.Hold), lost: make(map[string]string),
		hurry: make(chan struct{}, 1),
	}
}

// Start boots the pair and returns when it is protected: the active side
// serves, the understudy is idle, the active kernel is found in its memory.
// On an error nothing is left behind.
func Start(ctx context.Context, p *pair.Pair, o Options) (*Supervisor, error) {
	dir, err := makeRunDir(o.Dir)
	if err != nil {
		return nil, err
	}
	s := newSupervisor(p, o, dir)
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.undo())
	}
	return s, nil
}

// undo takes back a start that failed. What the active side may have done by then is saved
// first.
func (s *Supervisor) undo() error {
	var err error
	switch {
	case s.active == nil && s.dir.Record != nil: // no side has mounted a shared disk yet
		err = s.record(s.saved)
	case s.dir.AtStake():
		err = s.active.whileAlive(context.Background(), s.Stop)
	}
	return errors.Join(err, s.Close())
}

func (s *Supervisor) start(ctx context.Context) error {
	if err := s.checkRoom(s.memory()); err != nil {
		return err
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	if err := s.hold(fence.Keep); err != nil {
		return err
	}
	if err := s.checkDisks(); err != nil {
		return err
	}
	if err := s.keepPair(); err != nil {
		return err
	}
	staging, err := device.NewStaging(s.stagingPath(), int64(max(s.Pair.Partitions[0].Memory, s.Pair.Partitions[1].Memory)))
	if err != nil {
		return err
	}
	s.staging = staging
	if err := s.recordRest(); err != nil { // a system that boots may write to its root disk
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for i := range s.Pair.Partitions {
		g.Go(func() (err error) {
			s.sides[i], err = s.boot(gctx, i, i == 0)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	s.active, s.understudy = s.sides[0], s.sides[1]
	g, gctx = errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := s.active.whileAlive(gctx, s.activate); err != nil {
			return err
		}
		return s.prepare(gctx)
	})
	g.Go(func() error { return s.fit(gctx, s.understudy) })
	if err := g.Wait(); err != nil {
		return err
	}
	s.crashLoop.protected(time.Now())
	if err := s.record(func(r *Record) { r.Up, r.Understudy = true, s.understudy.name }); err != nil {
		return err
	}
	// Nobody is served before the pair is protected.
	if _, err := s.connect(s.active); err != nil {
		return err
	}
	if err := s.announce(ctx, s.active); err != nil {
		s.log("announce the addresses of partition %s: %v", s.active.name, err)
	}
	return nil
}

// settle settles each disk and root image. If one is in between, the memory that its commit was
// from is no longer on this machine: the run directory is new.
func (s *Supervisor) settle(ctx context.Context) error {
	if s.options.Settle == nil {
		return nil
	}
	images := s.images()
	for _, p := range s.Pair.Partitions {
		if p.Root != "" {
			images = append(images, p.Root)
		}
	}
	for _, image := range images {
		h, err := fence.Keep(image) // checks that it exists, and is free
		if err == nil {
			err = h.Close()
		}
		if err == nil {
			err = s.options.Settle(ctx, image)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hold makes the disks and root images ours for as long as the pair is up.
func (s *Supervisor) hold(keep func(string) (*fence.Hold, error)) error {
	hold := func(in map[string]*fence.Hold, image string) (err error) {
		h, err := keep(image)
		if err == nil {
			in[image] = h
		}
		return err
	}
	for _, image := range s.images() {
		if err := hold(s.holds, image); err != nil {
			return err
		}
	}
	for _, p := range s.Pair.Partitions {
		if err := s.holdRoot(p.Root, keep); err != nil {
			return err
		}
	}
	return nil
}

// holdRoot holds a partition's root image, if it has one that is not held yet.
func (s *Supervisor) holdRoot(path string, keep func(string) (*fence.Hold, error)) error {
	if path == "" || s.holds[path] != nil || s.roots[path] != nil {
		return nil
	}
	h, err := keep(path)
	if err == nil {
		s.roots[path] = h
	}
	return err
}

// log writes to the operator's log. That nobody can read the log any more is not an error.
func (s *Supervisor) log(format string, args ...any) {
	fmt.Fprintf(s.options.Log, format+"\n", args...)
}

// rehearses reports whether the understudy goes through a takeover before the pair counts
// as protected.
func (s *Supervisor) rehearses() bool { return s.Pair.Takeover.Rehearse && len(s.Pair.Disks) > 0 }

func (s *Supervisor) stagingPath() string { return filepath.Join(s.options.Dir, "staging") }

// makeRehearsals makes a disk to rehearse on for each of the pair's disks, with the features
// of that disk's file system.
func (s *Supervisor) makeRehearsals(ctx context.Context, name string) (devices []partition.Device, err error) {
	if !s.rehearses() {
		return nil, nil
	}
	for i, d := range s.Pair.Disks {
		fs, err := s.fileSystemOn(d)
		if err != nil {
			return nil, err
		}
		var options, without []string
		if fs != nil { // otherwise mkfs's defaults have to do
			options, without, err = makeOptions(d, fs)
		}
		if err != nil {
			return nil, err
		}
		path := filepath.Join(s.options.Dir, fmt.Sprintf("%s.%s", name, wire.RehearsalDisk(i)))
		if err := device.MakeRehearsal(ctx, path, string(d.Type), options, without); err != nil {
			return nil, fmt.Errorf("%w (takeover: {rehearse: false} turns rehearsals off)", err)
		}
		devices = append(devices, partition.Disk{Name: wire.RehearsalDisk(i), Image: path})
		if !d.Layered() {
			continue
		}
		for n, image := range d.Images() {
			o := partition.Overlay{Name: wire.TrialDisk(i, n), File: fmt.Sprintf("%s.%d", path, n), Backing: partition.Backing{Image: image}}
			if err := device.MakeOverlay(ctx, o.File, image); err != nil {
				return nil, err
			}
			devices = append(devices, o)
		}
	}
	return devices, nil
}

// rehearse makes an understudy go through a takeover.
func (s *Supervisor) rehearse(ctx context.Context, sd *side) error {
	if !s.rehearses() {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not done within %v", startLimit))
	defer cancel()
	for range rehearsals {
		err := sd.whileAlive(ctx, func(ctx context.Context) error {
			return sd.agent.Call(ctx, wire.Rehearse, wire.RehearseRequest{Services: true}, nil)
		})
		if err != nil {
			return fmt.Errorf("rehearse a takeover on partition %s: %w (takeover: {rehearse: false} turns rehearsals off, rehearse: false of a service leaves that service out of them)", sd.name, err)
		}
	}
	return nil
}

// memory returns the memory of both partitions, in bytes.
func (s *Supervisor) memory() uint64 {
	return s.Pair.Partitions[0].Memory + s.Pair.Partitions[1].Memory
}

// checkRoom checks that the run directory, which may not exist yet, has room for this many bytes of
// memory, and for what a takeover stages, which is only reserved when it is needed.
func (s *Supervisor) checkRoom(memory uint64) error {
	dir := filepath.Dir(s.options.Dir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("measure room in %s: %w", dir, err)
	}
	free := st.Bavail * uint64(st.Bsize)
	need := memory + max(s.Pair.Partitions[0].Memory, s.Pair.Partitions[1].Memory)/stagedShare
	if need > free {
		return fmt.Errorf("%s has room for %d MiB, and the pair needs %d MiB more, for memory and what a takeover stages: enlarge that file system, or set UNDERSTUDY_RUN to a directory of a larger one",
			dir, free>>20, need>>20)
	}
	return nil
}

// stagedShare says what part of a partition's memory must be free in addition to it, for
// the unsaved data of a takeover: one in stagedShare. A kernel makes writers wait when a
// fifth of its memory is unsaved (Documentation/admin-guide/sysctl/vm.rst, dirty_ratio).
const stagedShare = 4

// activate gives the first side its role. Its disks are attached since it booted.
func (s *Supervisor) activate(ctx context.Context) error {
	if err := s.record(func(r *Record) { r.Active = s.active.name }); err != nil {
		return err
	}
	return s.serve(ctx, s.active)
}

// serve makes a side mount its disks and start the services.
func (s *Supervisor) serve(ctx context.Context, sd *side) error {
	for _, d := range s.Pair.Disks {
		if d.Layered() {
			if err := s.checkLayered(ctx, sd, d); err != nil {
				return err
			}
		}
		if err := sd.mountLimited(ctx, d.Name); err != nil {
			return err
		}
	}
	_, err := sd.startServices(ctx, 0)
	return err
}

// record makes a change of the record durable, together with those that could not be recorded before.
func (s *Supervisor) record(change func(*Record)) error {
	s.recording.Lock()
	defer s.recording.Unlock()
	r := &Record{Pair: s.Pair.Name}
	if s.dir.Record != nil {
		*r = *s.dir.Record
		r.Disks, r.Kept, r.Sides = slices.Clone(r.Disks), slices.Clone(r.Kept), slices.Clone(r.Sides)
	} else {
		for _, d := range s.Pair.Disks {
			on := RecordDisk{Name: d.Name, Image: d.Image, Part: d.Part, UUID: s.uuidOf(d), Layers: d.Layers()}
			if len(on.Layers) == 1 {
				on.Volume = d.LVM
			}
			r.Disks = append(r.Disks, on)
		}
	}
	if s.unrecorded != nil {
		s.unrecorded(r)
	}
	change(r)
	err := s.dir.Write(r)
	if err == nil {
		s.unrecorded = nil
	}
	return err
}

// recorded returns the current record, which must not be changed.
func (s *Supervisor) recorded() Record {
	s.recording.Lock()
	defer s.recording.Unlock()
	if s.dir.Record == nil {
		return Record{}
	}
	return *s.dir.Record
}

// prepare lets the morgue find the living kernel, so that a takeover does not have to. If
// it cannot be found, that is reported now, not after the crash.
func (s *Supervisor) prepare(ctx context.Context) error {
	m, err := s.openMorgue()
	if err != nil {
		return err
	}
	if err := m.Prepare(ctx); err != nil {
		return fmt.Errorf("find the kernel of partition %s in its memory: %w", s.active.name, err)
	}
	if s.Pair.NFS != nil {
		_, _ = m.NFSClients() // afterwards the layout of the NFS server's structures is known
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepared = s.prepared || s.morgue == m // otherwise another side serves by now
	return nil
}

// openMorgue opens the memory of the active side, unless it is open.
func (s *Supervisor) openMorgue() (*morgue.Morgue, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.morgue == nil {
		m, err := morgue.Open(s.active.process.Spec.RAMPath())
		if err != nil {
			return nil, fmt.Errorf("open memory of partition %s: %w", s.active.name, err)
		}
		s.morgue = m
	}
	return s.morgue, nil
}

// fit makes an understudy rehearse. If the partitions boot different kernels, the understudy's must
// also be found in its memory: otherwise what is unsaved would be lost when it dies as the active side.
func (s *Supervisor) fit(ctx context.Context, sd *side) error {
	if err := s.rehearse(ctx, sd); err != nil {
		return err
	}
	if s.Pair.Partitions[0].Kernel == s.Pair.Partitions[1].Kernel {
		return nil
	}
	m, err := findKernel(ctx, sd.spec.RAMPath())
	if err != nil {
		return fmt.Errorf("find the kernel of partition %s in its memory, as if it had died: %w", sd.name, err)
	}
	return m.Close()
}

// findKernel opens the memory of a side, and finds the kernel in it.
func findKernel(ctx context.Context, memory string) (*morgue.Morgue, error) {
	m, err := morgue.Open(memory)
	if err != nil {
		return nil, err
	}
	if err := m.Prepare(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// connect connects a side to the network. news reports whether it was not connected before.
func (s *Supervisor) connect(side *side) (news bool, err error) {
	for i, n := range s.Pair.NICs {
		there, err := s.options.Network.Join(side.taps[i], n.Bridge)
		if err != nil {
			return news, fmt.Errorf("connect %s of partition %s: %w", n.Name, side.name, err)
		}
		news = news || !there
	}
	return news, nil
}

// Crash kills the active kernel on purpose; with silent, without a dying message. The
// takeover's timeline begins when Crash is called.
func (s *Supervisor) Crash(silent bool) error {
	s.mu.Lock()
	s.crashed = time.Now()
	active := s.active
	s.mu.Unlock()
	return active.crash(silent)
}

func (s *Supervisor) images() []string {
	var paths []string
	for _, d := range s.Pair.Disks {
		paths = append(paths, d.Images()...)
	}
	return paths
}

// disks returns the held images of the shared disks.
func (s *Supervisor) disks() []*fence.Hold {
	var holds []*fence.Hold
	for _, image := range s.images() {
		holds = append(holds, s.holds[image])
	}
	return holds
}

// haveDisks checks that a side's process has those files open that we hold, and not others
// that have their paths by now.
func (s *Supervisor) haveDisks(sd *side) error {
	for _, h := range s.disks() {
		if !h.OpenIn(sd.process.PID()) {
			return errors.Join(fmt.Errorf("the QEMU process of partition %s does not have the file %s open", sd.name, h.Name()), h.Named())
		}
	}
	return nil
}

// Side describes one side of a pair.
type Side struct {
	Name    string
	Release string // of its kernel
	Accel   partition.Accel
}

// Sides returns the active side and the understudy. The understudy's name is empty if there
// is none.
func (s *Supervisor) Sides() (active, understudy Side) {
	a, u := s.roles()
	return a.describe(), u.describe()
}

func (sd *side) describe() Side {
	if sd == nil {
		return Side{}
	}
	return Side{Name: sd.name, Release: sd.greeting.Release, Accel: sd.process.Spec.Accel}
}

// Call calls a verb of the active side's agent.
func (s *Supervisor) Call(ctx context.Context, verb string, in, out any) error {
	active, _ := s.roles()
	return active.agent.Call(ctx, verb, in, out)
}

// ActivePID returns the process ID of the active partition.
func (s *Supervisor) ActivePID() int {
	active, _ := s.roles()
	return active.process.PID()
}

// Flushes returns how often the active side has flushed a disk.
func (s *Supervisor) Flushes(ctx context.Context, disk string) (int64, error) {
	active, _ := s.roles()
	return device.Flushes(ctx, active.process.QMP, partition.Disk{Name: disk})
}

// findAccel returns the accelerator that a partition runs on.
func (s *Supervisor) findAccel(ctx context.Context, p pair.Partition) (partition.Accel, error) {
	switch p.Accel {
	case pair.AccelKVM:
		return partition.KVM, nil
	case pair.AccelTCG:
		return partition.TCG, nil
	}
	if why := partition.Withheld(); why != nil {
		s.log("partition %s is emulated, many times slower than with KVM, which this machine has: %v", p.Name, why)
	}
	return partition.FindAccel(ctx, p.Kernel)
}
