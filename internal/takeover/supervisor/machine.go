package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/draft"
)

// fenceLimit is how long a dead side's process may take to end, and each of its images to be
// released: the process may be in the middle of a flush that takes a disk many seconds, and
// nobody can serve before that is over. After fenceTold, the log says what we wait for.
const (
	fenceLimit = time.Minute
	fenceTold  = 2 * time.Second
)

// machine implements takeover.Machine for this pair.
type machine struct {
	s       *Supervisor
	heir    *side // the understudy; already the active side when a takeover settles
	proof   *fence.Proof
	layered []string         // the disks whose file systems only the understudy sees
	sizes   map[string]int64 // the size of the device on the layers of a disk, by the disk's name
}

func (m *machine) disk(name string) (pair.Disk, error) {
	for _, d := range m.s.Pair.Disks {
		if d.Name == name {
			return d, nil
		}
	}
	return pair.Disk{}, fmt.Errorf("no disk %q in the pair", name)
}

// Fence also closes the dead side's connection to the network, and lets the understudy run
// on the dead side's CPUs.
func (m *machine) Fence(context.Context) error {
	dead := m.s.active.process
	told := time.AfterFunc(fenceTold, func() {
		m.s.log("process %d of partition %s was killed and has not let go of its disks yet: it is waited for", dead.PID(), m.s.active.name)
	})
	proof, err := fence.Raise(dead, m.s.disks(), fenceLimit)
	told.Stop()
	if err != nil {
		return err
	}
	m.proof = proof
	if m.s.Pair.NFS != nil {
		if err := m.heir.agent.Notify(wire.Begin, nil); err != nil {
			return err
		}
	}
	return m.heir.process.Spread(dead.Spec.CPUs)
}

func (m *machine) Image(ctx context.Context, name string) (takeover.Image, error) {
	d, err := m.disk(name)
	if err != nil {
		return nil, err
	}
	if slices.Contains(m.layered, name) {
		return newGuestImage(ctx, m.heir, name, m.sizes[name], m.Staging), nil
	}
	image := m.proof.Image(d.Image)
	if image == nil {
		return nil, fmt.Errorf("image %s is not behind the fence", d.Image)
	}
	h := m.s.holds[d.Image]
	a, err := disk.At(image, h.Size, whereOf(d))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", d.Image, err)
	}
	if a.Whole() {
		return device.Direct{File: image}, nil
	}
	return device.On(image, a), nil
}

// Check checks a draft of the disk with this machine's e2fsck: that does not have to wait
// for an emulated CPU, and what it would do to the disk is known before it is done.
func (m *machine) Check(ctx context.Context, disk string) (_ *wire.Check, err error) {
	image, err := m.Image(ctx, disk)
	if err != nil {
		return nil, err
	}
	sized, ok := image.(io.Seeker)
	if !ok {
		return nil, fmt.Errorf("%w: only the understudy sees disk %s", errors.ErrUnsupported, disk)
	}
	size, err := sized.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size disk %s: %w", disk, err)
	}
	as := draft.New(image, m.s.options.Dir)
	defer func() { err = errors.Join(err, as.Close()) }()
	found, err := as.Check(ctx, size, func(p draft.Progress) { m.s.log("e2fsck of disk %s: %v", disk, p) })
	if errors.Is(err, draft.ErrNoCheck) || as.Failed() != nil {
		m.s.log("disk %s is checked by the understudy: %v", disk, err)
		return nil, fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	if err := as.Copy(image); err != nil {
		return nil, fmt.Errorf("write what e2fsck repaired: %w", err)
	}
	return found, nil
}

func (m *machine) HandOver(ctx context.Context, disk string) error {
	d, err := m.disk(disk)
	if err != nil {
		return err
	}
	for i, image := range d.Images() {
		if err := m.proof.Release(image); err != nil {
			return err
		}
		if err := m.heir.setDisk(ctx, d.Serials()[i]); err != nil {
			return err
		}
	}
	if !d.Layered() {
		return nil
	}
	size, err := m.heir.activate(ctx, disk)
	m.sizes[disk] = size
	return err
}

func (m *machine) Mount(ctx context.Context, disk string, check bool) (*wire.Check, error) {
	return m.heir.mount(ctx, disk, check)
}

func (m *machine) Name(ctx context.Context, r wire.NameRequest) (result wire.NameResult, err error) {
	return result, m.heir.agent.Call(ctx, wire.Name, r, &result)
}

func (m *machine) Staging(n int64) ([]byte, error) {
	if err := m.s.staging.Reserve(n); err != nil {
		return nil, err
	}
	return m.s.staging.Map()
}

func (m *machine) Apply(ctx context.Context, r wire.ApplyRequest) (result wire.ApplyResult, err error) {
	return result, m.heir.agent.Call(ctx, wire.Apply, r, &result)
}

// Start does not keep the pair from going live if no service came up: the disks are mounted,
// and there is a system to look into.
func (m *machine) Start(ctx context.Context, within time.Duration) ([]wire.Unready, error) {
	return m.heir.startServices(ctx, within)
}

func (m *machine) GoLive(context.Context) error {
	if _, err := m.s.connect(m.heir); err != nil { // tried again as long as this side is watched
		return fmt.Errorf("%w: %w", takeover.ErrUnreached, err)
	}
	return nil
}

func (m *machine) Sync(ctx context.Context) error { return m.heir.agent.Call(ctx, wire.Sync, nil, nil) }

func (m *machine) drop() {
	if m.proof != nil {
		m.proof.Drop()
	}
}
