package bare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/filewriter"
	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/nfsd"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// diskLimit is how long a disk may take to appear, once PCI is revealed, and then again to answer. It only bounds a
// hang: after the reset that is part of the fence, the firmware of a RAID controller may take minutes to start
// (megaraid_sas waits 180 s for it).
const diskLimit = 5 * time.Minute

// nicLimit is how long an interface may take to appear, which has been driven for as long as the disks by then.
const nicLimit = 30 * time.Second

// helpAfter is the time after which services that are not up yet get the dead kernel's CPUs. Bringing these
// online takes time from the CPUs that serve.
const helpAfter = 2 * time.Second

// nmiEntry is what a kernel runs at an NMI (arch/x86/entry/entry_64.S).
const nmiEntry = "asm_exc_nmi"

// machine carries out a takeover on the machine that this kernel runs on.
type machine struct {
	self     *metal.Self
	role     wire.Config // as this kernel carries it out
	agent    *agent.Agent
	morgue   *morgue.Morgue
	memory   ram.Memory                         // the dead kernel's
	nmi      struct{ virtual, physical uint64 } // addresses of the dead kernel's nmiEntry
	parked   bool                               // the dead kernel's CPUs are parked
	fenced   bool                               // its devices are silenced too
	leftover leftover
	images   map[string]*image
	peers    wire.AcquaintRequest // the dead kernel's
	staging  staging

	enlisting sync.Mutex // held while CPUs come online

	nfsClients chan [][]byte // names of the clients of the dead kernel's NFS server; nil: it had none

	unprotect context.CancelFunc // ends what keeps another understudy; nil: nothing does
	protected chan struct{}      // closed when that has ended
}

// image is a disk of this machine that nobody else has open for writing.
type image struct{ *os.File }

// Fence parks the dead kernel's CPUs and silences its devices, and then lets this kernel find the devices. What
// an NFS server can do without a disk begins meanwhile.
func (m *machine) Fence(ctx context.Context) error {
	if err := m.self.Park(m.nmi.virtual, m.nmi.physical); err != nil {
		return err
	}
	m.parked = true
	mute, err := m.self.Silence()
	if err != nil {
		return err
	}
	if len(mute) > 0 {
		say("PCI devices that do not answer any more after their reset: %s", strings.Join(mute, ", "))
	}
	if m.role.NFS != nil {
		m.nfsClients = make(chan [][]byte, 1)
		go func() {
			names, err := m.morgue.NFSClients()
			if err != nil {
				say("some of the clients of the dead kernel's NFS server will not get back their locks: %v", err)
			}
			m.nfsClients <- names
		}()
		go func() {
			if err := m.agent.Do(context.WithoutCancel(ctx), wire.Begin, nil, nil); err != nil {
				say("begin to serve NFS: %v", err) // the start of the services says so too
			}
		}()
	}
	m.fenced = true
	return m.self.Reveal()
}

func (m *machine) Image(_ context.Context, name string) (takeover.Image, error) {
	group := m.volumeOf(name)
	how := unix.O_EXCL
	if group != "" {
		how = 0 // another volume of the group may be mounted already, and has the device
	}
	f, err := openDisk(name, how)
	if err != nil {
		return nil, err
	}
	m.images[name] = &image{f}
	if group == "" {
		return m.images[name], nil
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size disk %s: %w", name, err)
	}
	a, err := disk.At(f, size, disk.Where{Volume: group})
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", name, err)
	}
	// Without WriteStretches: most of what is written is in memory that cannot be written from past the page cache (/dev/mem).
	return struct{ takeover.Image }{device.On(f, a)}, nil
}

// volumeOf is the logical volume that a disk of the role is, or empty.
func (m *machine) volumeOf(name string) string {
	i := slices.IndexFunc(m.role.Disks, func(d wire.Disk) bool { return d.Name == name })
	if i < 0 {
		return ""
	}
	return m.role.Disks[i].Volume
}

// openDisk opens a disk, or a partition, for writing, once it is there. With O_EXCL it fails while anything on this kernel
// has the disk mounted (block/bdev.c).
func openDisk(name string, how int) (*os.File, error) {
	path, err := agent.AwaitDisk(context.Background(), name, diskLimit)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|how, 0)
	for end := time.Now().Add(diskLimit); errors.Is(err, unix.ENXIO) && time.Now().Before(end); { // a node is there before its disk answers
		time.Sleep(time.Millisecond)
		f, err = os.OpenFile(path, os.O_RDWR|how, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk %s: %w", name, err)
	}
	return f, nil
}

// Check is not done here: the understudy has the disk itself, and checks it in Mount.
func (m *machine) Check(context.Context, string) (*wire.Check, error) {
	return nil, errors.ErrUnsupported
}

// HandOver lets go of the disk, so that it can be mounted.
func (m *machine) HandOver(ctx context.Context, disk string) error {
	if i := m.images[disk]; i != nil { // otherwise nothing of it was to be salvaged
		delete(m.images, disk)
		if err := i.Close(); err != nil {
			return err
		}
	}
	if m.volumeOf(disk) == "" {
		return nil
	}
	return m.agent.Do(ctx, wire.Activate, wire.ActivateRequest{Disk: disk}, nil)
}

func (m *machine) Mount(ctx context.Context, disk string, check bool) (*wire.Check, error) {
	var result wire.MountResult
	err := m.agent.Do(ctx, wire.Mount, wire.MountRequest{Disk: disk, Check: check}, &result)
	if err == nil && m.isRoot(disk) {
		err = furnish()
	}
	return result.Check, err
}

func (m *machine) Name(ctx context.Context, r wire.NameRequest) (result wire.NameResult, err error) {
	return result, m.agent.Do(ctx, wire.Name, r, &result)
}

func (m *machine) Staging(n int64) ([]byte, error) { return m.staging.reserve(n) }

func (m *machine) Apply(_ context.Context, r wire.ApplyRequest) (result wire.ApplyResult, err error) {
	mount, kind, done, err := m.agent.OpenMount(r.Disk)
	if err != nil {
		return result, err
	}
	defer done()
	return filewriter.Apply(mount, kind, m.staging.file, r, time.Time{})
}

// Start fails if none of the services came up: the machine's own system can be examined then, this one hardly.
func (m *machine) Start(ctx context.Context, within time.Duration) ([]wire.Unready, error) {
	m.showExports()
	m.makeTemporary(ctx)
	help := time.AfterFunc(helpAfter, func() { m.enlist(m.spare()) })
	defer help.Stop()
	if m.role.NFS != nil {
		if err := nfsd.Replace(m.role.NFS.State, <-m.nfsClients); err != nil {
			m.agent.RefuseNFS(err) // the other services start
		}
	}
	var result wire.StartResult
	if err := m.agent.Do(ctx, wire.Start, wire.StartRequest{Within: within}, &result); err != nil {
		return nil, err
	}
	all := len(m.role.Services)
	if m.role.NFS != nil {
		all++
	}
	if n := len(result.Unready); n > 0 && n == all {
		return nil, errors.New(result.Unready[0].String())
	}
	for _, u := range result.Unready {
		say("%v", u)
	}
	return result.Unready, nil
}

// GoLive brings the interfaces up, with the MACs and addresses that they had.
func (m *machine) GoLive(ctx context.Context) error {
	for _, n := range m.role.NICs {
		if err := agent.AwaitNIC(ctx, n.MAC, nicLimit); err != nil {
			return err
		}
	}
	return m.agent.Do(ctx, wire.Configure, m.role, nil)
}

// Acquaint keeps the peers for Tell: the interfaces are not there yet.
func (m *machine) Acquaint(_ context.Context, p wire.Peers) (result wire.AcquaintResult, err error) {
	m.peers, err = wire.NewAcquaintRequest(p)
	return result, err
}

func (m *machine) Announce(ctx context.Context) error {
	return m.agent.Do(ctx, wire.Announce, nil, nil)
}

func (m *machine) Tell(ctx context.Context, rate int) (result wire.TellResult, err error) {
	if err := m.agent.Do(ctx, wire.Acquaint, m.peers, nil); err != nil {
		return result, err
	}
	return result, m.agent.Do(ctx, wire.Tell, wire.TellRequest{Rate: rate, Limit: tellLimit}, &result)
}

func (m *machine) Sync(ctx context.Context) error { return m.agent.Do(ctx, wire.Sync, nil, nil) }

// tellLimit is how long telling the clients may take.
const tellLimit = 70 * time.Second

// staging is memory for what is gathered, which is a file too.
type staging struct {
	file   *os.File
	mapped []byte
}

// reserve makes sure that the first n bytes are there.
func (s *staging) reserve(n int64) ([]byte, error) {
	if s.file == nil {
		fd, err := unix.MemfdCreate("staging", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("make the memfd for unsaved data: %w", err)
		}
		s.file = os.NewFile(uintptr(fd), "staging")
	}
	if n <= int64(len(s.mapped)) {
		return s.mapped, nil
	}
	n = (n + 1<<21 - 1) &^ (1<<21 - 1)
	if err := unix.Fallocate(int(s.file.Fd()), 0, 0, n); err != nil {
		return nil, fmt.Errorf("allocate %d MiB of memory for unsaved data: %w", n>>20, err)
	}
	b, err := unix.Mmap(int(s.file.Fd()), 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d MiB: %w", n>>20, err)
	}
	s.mapped = b // what was mapped before stays: somebody may still use it
	return b, nil
}
