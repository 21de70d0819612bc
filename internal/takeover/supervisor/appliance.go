package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
)

// Appliance is a single partition with an agent, for work on disks that the
// machine's own kernel must not touch.
type Appliance struct{ side *side }

// StartAppliance boots a partition whose agent knows these disks.
func StartAppliance(ctx context.Context, spec partition.Spec, disks []wire.Disk, notice Notice) (*Appliance, error) {
	return StartGuest(ctx, spec, wire.Config{Partition: spec.Name, Disks: disks}, notice)
}

// NotUp is the error of a guest that did not come up, with all of its console output.
type NotUp struct {
	Console []byte
	error
}

func (n *NotUp) Unwrap() error { return n.error }

// StartGuest boots a partition and configures its agent. If the partition does not come up,
// the error is a *NotUp, and the partition's files are removed.
func StartGuest(ctx context.Context, spec partition.Spec, c wire.Config, notice Notice) (*Appliance, error) {
	sd := &side{name: spec.Name}
	if err := sd.boot(ctx, spec, c, notice); err != nil {
		console, _ := os.ReadFile(spec.ConsoleLogPath()) // it may have said nothing
		return nil, &NotUp{console, errors.Join(err, sd.close())}
	}
	return &Appliance{sd}, nil
}

// Mount mounts a disk where its configuration says.
func (a *Appliance) Mount(ctx context.Context, disk string) error {
	_, err := a.side.mount(ctx, disk, false)
	return err
}

// Call calls a verb of the agent.
func (a *Appliance) Call(ctx context.Context, verb string, in, out any) error {
	return a.side.agent.Call(ctx, verb, in, out)
}

// Crash kills its kernel on purpose.
func (a *Appliance) Crash() error { return a.side.crash(false) }

// Finish unmounts the disks and ends the partition, with everything that it wrote in the files
// of the disks. It returns an error if any of that failed; Close must be called in any case.
func (a *Appliance) Finish(ctx context.Context) error {
	if err := a.side.stop(ctx); err != nil {
		return err
	}
	p := a.side.process
	if err := p.QMP.Quit(ctx); err != nil {
		return fmt.Errorf("end partition %s: %w", a.side.name, err)
	}
	select {
	case <-p.Ended():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := p.Status(); err != nil {
		return fmt.Errorf("end partition %s: %w", a.side.name, err)
	}
	return nil
}

// Spread lets the partition run on these CPUs too.
func (a *Appliance) Spread(cpus []int) error { return a.side.process.Spread(cpus) }

// Gone returns a channel that is closed when the partition has ended, whether asked to or not.
func (a *Appliance) Gone() <-chan struct{} { return a.side.process.Ended() }

// Close ends the partition and removes its files.
func (a *Appliance) Close() error { return a.side.close() }
