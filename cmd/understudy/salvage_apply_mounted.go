package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/takeover/offline"
)

// mounted brings a file system up to date that the operator has mounted.
func (a *application) mounted(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("apply to a mounted file system: only root can open files by handle")
	}
	m, err := mountAt(a.mount)
	if err != nil {
		return err
	}
	a.disk = a.mount
	device, err := os.Open(m.source)
	if err != nil {
		return fmt.Errorf("open device of %s: %w", a.mount, err)
	}
	defer device.Close()
	if a.on, err = salvage.Identify(device); err != nil {
		return fmt.Errorf("open device %s: %w", m.source, err)
	}
	if a.fsys, err = a.fileSystem(a.on.UUID); err != nil {
		return err
	}
	if err := logFinished(a.on); err != nil {
		return fmt.Errorf("apply to %s: %w", a.mount, err)
	}
	died, err := a.died()
	if err != nil {
		return fmt.Errorf("apply to %s: %w", a.mount, err)
	}
	a.report.begin(a)
	plan, err := a.plan(func(p *salvage.Plan) error { return p.Descends(device) })
	if err != nil {
		return err
	}
	if a.dryRun {
		return nil
	}
	job, err := a.job(plan)
	if err != nil {
		return err
	}
	work := a.work
	if work == "" {
		work = os.TempDir()
	}
	r, err := offline.Mounted{Dir: a.mount, Type: m.kind, Work: work, Died: died}.Apply(ctx, job)
	if r != nil {
		a.report.applied(plan, r)
		a.report.stages(a.memory.Stages, r.Stages)
	}
	return err
}

// logFinished says whether a file system may be mounted before a plan is applied:
// one of the ext family not, since its mount replays the journal without what the
// dead kernel had not committed, which is then lost.
func logFinished(on *salvage.OnDisk) error {
	if on.Family == "ext" {
		return errors.New("the last commit of an ext file system must be finished before it is mounted: unmount it, and if nothing was written to it use --disk")
	}
	return nil
}

// died is the end of the dead kernel, by its own clock. What was changed later is
// somebody else's, if this machine's clock is not behind.
func (a *application) died() (time.Time, error) {
	if a.memory.Clock == nil {
		return time.Time{}, errors.New("the dead kernel's clock cannot be read: what was changed after the crash could not be told")
	}
	died := a.memory.Clock.Now
	if time.Now().Before(died) {
		return died, fmt.Errorf("the kernel died at %v by its clock, and that is still to come here: what was changed after the crash cannot be told", died.UTC().Round(time.Second))
	}
	return died, nil
}

// mountPoint is a mounted file system.
type mountPoint struct{ source, kind string }

// mountAt finds what is mounted on a directory (proc(5), mountinfo).
func mountAt(dir string) (mountPoint, error) {
	var m mountPoint
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return m, fmt.Errorf("find mount: %w", err)
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return m, fmt.Errorf("find mount: %w", err)
	}
	root, options := "", ""
	for line := range strings.Lines(string(b)) {
		m1, m2, ok := strings.Cut(line, " - ")
		before, after := strings.Fields(m1), strings.Fields(m2)
		if !ok || len(before) < 6 || len(after) < 3 || unescape(before[4]) != abs {
			continue
		}
		// The last one is on top of the others.
		root, options, m = unescape(before[3]), before[5], mountPoint{source: unescape(after[1]), kind: after[0]}
	}
	switch {
	case m.kind == "":
		return m, fmt.Errorf("find mount: nothing is mounted on %s", abs)
	case root != "/":
		return m, fmt.Errorf("find mount: on %s is only %s of its file system: mount all of it (btrfs: -o subvolid=5)", abs, root)
	case strings.HasPrefix(options, "ro"):
		return m, fmt.Errorf("find mount: %s is mounted read-only", abs)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(abs, &st); err != nil {
		return m, fmt.Errorf("find mount: %w", err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return m, fmt.Errorf("find mount: %s is read-only: the file system may have had an error", abs)
	}
	return m, nil
}

// unescape undoes how mountinfo writes spaces, tabs, newlines and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
