package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"understudy.dev/understudy/internal/live/nfsd"
	"understudy.dev/understudy/internal/live/wire"
)

// prepareNFS does all that the NFS server needs and that needs no disk.
func (a *Agent) prepareNFS(ctx context.Context, c *wire.NFS) (err error) {
	if c == nil || a.nfs != nil {
		return nil
	}
	a.nfs, err = nfsd.Prepare(ctx, *c, func(cmd *exec.Cmd) (func() error, error) {
		if err := a.children.Start(cmd); err != nil {
			return nil, err
		}
		return func() error { return a.children.Wait(cmd) }, nil
	}, func(s string) { fmt.Fprintln(os.Stderr, "understudy:", s) }, func(what, ends string) {
		a.notify(wire.TroubleNotice{What: what, Ends: ends})
	})
	return err
}

// RefuseNFS keeps the NFS server from starting: it counts as not ready.
func (a *Agent) RefuseNFS(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.nfs != nil {
		a.nfs.Refuse(why)
	}
}

// Exports returns what the NFS server exports, or nothing if there is no server.
func (a *Agent) Exports() []nfsd.Export {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.nfs == nil {
		return nil
	}
	return a.nfs.Exports()
}

// begin starts the part of the services that can start without the disks,
// which are on their way.
func (a *Agent) begin(ctx context.Context, _ none) (none, error) {
	a.mu.Lock()
	server := a.nfs
	a.mu.Unlock()
	if server == nil {
		return none{}, nil
	}
	return none{}, server.Begin(ctx)
}

func (a *Agent) startNFS(ctx context.Context) error {
	if a.nfs == nil {
		return nil
	}
	return a.nfs.Start(ctx)
}

func (a *Agent) stopNFS() error {
	if a.nfs == nil {
		return nil
	}
	return a.nfs.Stop()
}

// rehearseNFS starts and stops the server on the rehearsal disk, where it first
// makes the exported directories.
func (a *Agent) rehearseNFS(ctx context.Context) error {
	if a.nfs == nil {
		return nil
	}
	for _, e := range a.nfs.Exports() {
		if err := os.MkdirAll(e.Path, 0o755); err != nil {
			return fmt.Errorf("make directory to export: %w", err)
		}
	}
	return a.nfs.Rehearse(ctx)
}

// armNFS makes the server ready again after a rehearsal.
func (a *Agent) armNFS() error {
	if a.nfs == nil {
		return nil
	}
	return a.nfs.Arm()
}
