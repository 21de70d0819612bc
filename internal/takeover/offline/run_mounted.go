package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"understudy.dev/understudy/dead/salvage"
)

// mounted brings up to date a file system that the operator has mounted.
func (a *application) mounted(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("apply to a mounted file system: only root can open files by handle")
	}
	m, err := mountAt(a.Mount)
	if err != nil {
		return err
	}
	a.Disk = a.Mount
	device, err := os.Open(m.Source)
	if err != nil {
		return fmt.Errorf("open device of %s: %w", a.Mount, err)
	}
	defer device.Close()
	if a.on, err = salvage.Identify(device); err != nil {
		return fmt.Errorf("open device %s: %w", m.Source, err)
	}
	if a.fsys, err = a.fileSystem(a.on.UUID); err != nil {
		return err
	}
	if err := logFinished(a.on); err != nil {
		return fmt.Errorf("apply to %s: %w", a.Mount, err)
	}
	died, err := a.died()
	if err != nil {
		return fmt.Errorf("apply to %s: %w", a.Mount, err)
	}
	a.begin()
	err = a.plan(func(p *salvage.Plan) error { return p.Descends(device) })
	if err != nil {
		return err
	}
	if a.DryRun {
		return nil
	}
	job, err := a.job()
	if err != nil {
		return err
	}
	work := a.Work
	if work == "" {
		work = os.TempDir()
	}
	return a.applied(Mounted{Dir: a.Mount, Type: m.Type, Work: work, Died: died}.Apply(ctx, job))
}

// logFinished checks that a file system may be mounted before a plan is applied. One of the
// ext family may not: the mount replays the journal without what the dead kernel had not
// committed, which is then lost.
func logFinished(on *salvage.OnDisk) error {
	if on.Family == "ext" {
		return errors.New("the last commit of an ext file system must be finished before it is mounted: unmount it, and if nothing was written to it use --disk")
	}
	return nil
}

// died returns when the kernel died, by its own clock. What was changed later was changed
// by somebody else, if this machine's clock is not behind.
func (a *application) died() (time.Time, error) {
	if a.memory.Clock == nil {
		return time.Time{}, errors.New("the dead kernel's clock cannot be read, so files that were changed after the crash could not be told from others")
	}
	died := a.memory.Clock.Now
	if time.Now().Before(died) {
		return died, fmt.Errorf("the kernel died at %v by its clock, which is in the future by this machine's: files that were changed after the crash cannot be told from others", died.UTC().Round(time.Second))
	}
	return died, nil
}
