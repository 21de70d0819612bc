package agent

import (
	"context"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/filewriter"
	"understudy.dev/understudy/internal/live/wire"
)

// rehearse does what a takeover will ask for, on its own disks that stand for the shared
// ones: mount, write files by handle, announce the addresses, start the services, wait
// until they are ready, stop them, unmount. Whatever the kernel does for the first time
// takes several times as long as the second time, and longer still under emulation; and
// what cannot work should be known before a crash.
func (a *Agent) rehearse(ctx context.Context, r wire.RehearseRequest) (_ none, err error) {
	defer func() {
		if _, stopErr := a.stop(ctx, none{}); err == nil {
			err = stopErr
		}
		if armErr := a.armNFS(); err == nil {
			err = armErr
		}
	}()
	if err := a.rehearseDisks(ctx); err != nil {
		return none{}, err
	}
	if _, err := a.sync(ctx, none{}); err != nil {
		return none{}, err
	}
	if err := a.network.rehearse(); err != nil {
		return none{}, err
	}
	if !r.Services {
		return none{}, nil
	}
	if err := a.rehearseNFS(ctx); err != nil {
		return none{}, err
	}
	return none{}, a.startAll(ctx, func(s wire.Service) bool { return !s.Unrehearsed })
}

// rehearseDisks mounts the disks that stand for the shared ones, and writes to them.
func (a *Agent) rehearseDisks(ctx context.Context) error {
	staging, err := openStaging()
	if err != nil {
		return err
	}
	defer staging.Close()
	for i, d := range a.config.Disks {
		mount := d.Mount
		if err := a.rehearseLayers(ctx, i, d); err != nil {
			return err
		}
		d.Name, d.Part, d.Mirror, d.LUKS, d.Volume = wire.RehearsalDisk(i), 0, "", "", ""
		if d.Type == "btrfs" { // a new one has no subvolumes
			d.Options = withoutSubvolume(d.Options)
		}
		a.mu.Lock()
		err := a.mountDisk(ctx, d)
		a.mu.Unlock()
		if err != nil {
			return err
		}
		if err := filewriter.Rehearse(mount, d.Type, staging); err != nil {
			return err
		}
	}
	return nil
}

// withoutSubvolume returns mount options of btrfs without those that choose a subvolume.
func withoutSubvolume(options string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(options, ","), func(o string) bool {
		return strings.HasPrefix(o, "subvol=") || strings.HasPrefix(o, "subvolid=")
	}), ",")
}
