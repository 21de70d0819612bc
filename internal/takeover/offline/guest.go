package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// Guest describes the guest that the work is done in.
type Guest struct {
	Kernel string // path of a bzImage
	// Image makes the guest's initramfs at path. It contains the agent, and the modules
	// that the kernel needs.
	Image func(path string) error
	Accel partition.Accel
	CPUs  []int
	// Dir is a directory on a tmpfs, for sockets, memory and logs. It is created, and
	// removed with everything in it.
	Dir string
}

// memory is the size of the guest's memory, in bytes. The data does not pass through it:
// only a check of a large file system takes much.
const memory = 1 << 30

// diskName is the serial number of the disk in the guest, and mountPoint where it
// is mounted there.
const (
	diskName   = "disk"
	mountPoint = "/disk"
)

// run lets the guest fill the overlay.
func (d *Disk) run(ctx context.Context, j Job, g Guest, r *Result) error {
	s, err := stage(d.work, d.Size, j, r)
	if err != nil {
		return err
	}
	defer s.Close()
	// What an earlier run left there belonged to this disk, which is ours now.
	if err := errors.Join(os.RemoveAll(g.Dir), os.Mkdir(g.Dir, 0o700)); err != nil {
		return err
	}
	defer os.RemoveAll(g.Dir)
	spec := partition.Spec{
		Name: "appliance", Dir: g.Dir, CPUs: g.CPUs, VCPUs: min(2, len(g.CPUs)), Memory: memory, Accel: g.Accel,
		Kernel: g.Kernel, Initramfs: filepath.Join(g.Dir, "guest.cpio"),
		// A guest that panics is to end, not to stay for a takeover.
		Append: "panic=-1",
		Devices: []partition.Device{
			partition.Overlay{Name: diskName, File: d.overlay(), Backing: d.backing()},
			partition.Disk{Name: wire.StagingDisk, Image: s.Path(), ReadOnly: true},
		},
	}
	var a *supervisor.Appliance
	err = r.stage("boot guest", func() error {
		a, err = g.boot(ctx, spec, wire.Disk{Name: diskName, Type: j.Type, Mount: mountPoint, Options: j.Options})
		return err
	})
	if err != nil {
		return err
	}
	defer a.Close()
	if err := s.work(ctx, a, j, r); err != nil {
		err = fmt.Errorf("%w%s", err, lastLines(spec.ConsoleLogPath()))
		var m *notMountable
		if errors.As(err, &m) && !strings.Contains(err.Error(), "zero-log") { // which is other advice
			return hint.New("work in guest", err, "Nothing was changed. The kernel of the guest may be too old for this file system: give it a newer one, such as that which died, with --guest DIR.")
		}
		return fmt.Errorf("work in guest: %w", err)
	}
	return nil
}

// boots is how many times we try to boot a guest that does not come up: nothing has been
// written by then, and on a busy machine an emulated kernel may die for that reason alone.
const boots = 2

// boot boots the guest. The console output of a guest that does not come up is kept in a file, which the error names.
func (g *Guest) boot(ctx context.Context, spec partition.Spec, disk wire.Disk) (*supervisor.Appliance, error) {
	var errs []error
	for range boots {
		if err := g.Image(spec.Initramfs); err != nil {
			return nil, err
		}
		a, err := supervisor.StartAppliance(ctx, spec, []wire.Disk{disk}, nil)
		if err == nil {
			return a, nil
		}
		errs = append(errs, keepConsole(err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// keepConsole writes the console output of a guest that did not come up to a file in the
// directory for temporary files. The error names the file.
func keepConsole(err error) error {
	var up *supervisor.NotUp
	if !errors.As(err, &up) || len(up.Console) == 0 {
		return err
	}
	f, bad := os.CreateTemp("", "understudy-guest-*.console")
	if bad != nil {
		return errors.Join(err, bad)
	}
	_, bad = f.Write(up.Console)
	if bad = errors.Join(bad, f.Close()); bad != nil {
		return errors.Join(err, bad)
	}
	return hint.New("boot guest", err, "What it said is in "+f.Name()+".")
}

// notMountable is why a guest did not mount the disk.
type notMountable struct{ error }

func (n *notMountable) Unwrap() error { return n.error }

// work is all that the guest does.
func (s *staged) work(ctx context.Context, a *supervisor.Appliance, j Job, r *Result) error {
	if s.blocks.Len > 0 {
		err := r.stage("write blocks", func() error { return a.Call(ctx, wire.Write, s.blocks, nil) })
		if err != nil {
			return err
		}
	}
	var mounted wire.MountResult
	err := r.stage("mount", func() error { return a.Call(ctx, wire.Mount, s.mount, &mounted) })
	if err != nil {
		return &notMountable{err}
	}
	r.Check = mounted.Check
	if r.Check.Names() {
		request := j.Names(r.Check)
		request.Disk = diskName
		err := r.stage("undo names", func() error { return a.Call(ctx, wire.Name, request, &r.Named) })
		if errors.Is(err, wire.ErrUnsent) {
			r.Named.Failures = []wire.Failure{{Reason: "all names stay as e2fsck left them: " + err.Error()}}
		} else if err != nil {
			return err
		}
	}
	if s.apply.Len > 0 {
		err = r.stage("write files", func() error { return a.Call(ctx, wire.Apply, s.apply, &r.Applied) })
		if err != nil {
			return err
		}
	}
	if err := r.stage("sync", func() error { return a.Call(ctx, wire.Sync, nil, nil) }); err != nil {
		return err
	}
	return r.stage("unmount", func() error { return a.Finish(ctx) })
}

// lastLines returns the end of the guest's console log, for an error, or nothing if it is empty.
func lastLines(path string) string {
	const most = 2000 // bytes
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return ""
	}
	return "\nthe guest said: " + string(b[max(0, len(b)-most):])
}
