// Package vigil brings the disks of libvirt's domains up to date when their kernels die, before
// anybody starts them again.
//
// # Caveats
//
// libvirt must preserve a domain that has crashed (<on_crash>preserve</on_crash>), and hear of
// the crash (a <panic> device): Run reports the domains that lack either, and can do nothing for
// them.
package vigil

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/domains"
	"understudy.dev/understudy/internal/live/foreign"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/takeover/offline"
)

// Hypervisor is libvirt.
type Hypervisor interface {
	Word(ctx context.Context) (<-chan struct{}, error)
	Crashed() ([]domains.Domain, error)
	Unprepared() (map[string]string, error)
	Start(ctx context.Context, d domains.Domain) error
	Close() error
}

// Options say how libvirt is watched.
type Options struct {
	State   string                     // directory for what must outlive us; it is created
	Connect func() (Hypervisor, error) // to libvirt
	// Find finds the QEMU of a domain by its name.
	Find  func(domain string) (*foreign.Machine, error)
	Adopt offline.Adoption // how disks are brought up to date; End, Record and Room are set here
	// Refused returns what is in memory and not on the disks, in words for people.
	Refused func(*offline.Adopted) []string
	// Restart makes a domain start again if all that was in its memory is on its disks.
	Restart bool
	// Tell hears what happens, a line or more at a time.
	Tell func(string)
	// Ready is called once it is certain that nobody else watches here, and what an earlier run
	// had left to do is done.
	Ready func() error
}

// vigil is the state of one Run.
type vigil struct {
	Options
	told   map[string]bool // messages that need not be told again
	seen   map[string]bool // crashes that were acted on, by their run
	starts []domains.Domain
}

// run returns a name for a domain that is valid from one start to its end: libvirt's number of
// it may be used again when libvirtd has been started again.
func (v *vigil) run(d domains.Domain) string {
	name := fmt.Sprintf("%s %d", d.UUID, d.Run)
	m, err := v.Find(d.Name)
	if err != nil {
		return name
	}
	defer m.Close()
	started, err := m.Started()
	if err != nil {
		return name
	}
	return fmt.Sprintf("%s, process %d from %d", name, m.PID, started)
}

// Bounds on how often a connection to libvirt is tried, and on how often its domains are looked
// at besides its own word.
const (
	retryFirst = time.Second
	retryMost  = 30 * time.Second
	lookEvery  = time.Minute
)

// recordSuffix ends the name of a record in the state directory, which begins with a UUID.
const recordSuffix = ".record.json"

// Run watches until ctx ends. It fails only if it cannot begin.
func Run(ctx context.Context, o Options) error {
	v := &vigil{Options: o, told: make(map[string]bool), seen: make(map[string]bool)}
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	lock, err := v.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := v.resume(ctx); err != nil {
		return err
	}
	if err := v.Ready(); err != nil {
		v.Tell(err.Error())
	}
	for pause := retryFirst; ctx.Err() == nil; {
		began := time.Now()
		err := v.serve(ctx)
		if ctx.Err() != nil {
			return nil
		}
		v.once(fmt.Sprintf("libvirt is not there, and is tried again: %v", err))
		if time.Since(began) > retryMost {
			pause = retryFirst
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMost)
	}
	return nil
}

// lock keeps others from watching with the same state.
func (v *vigil) lock() (*os.File, error) {
	path := filepath.Join(v.State, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(hint.New("lock "+path, err, "Another watch runs here: systemctl status understudy-watch"), f.Close())
	}
	return f, nil
}

// once tells something that may happen again and again, but only the first time.
func (v *vigil) once(what string) {
	if !v.told[what] {
		v.told[what] = true
		v.Tell(what)
	}
}

// serve watches over one connection, until that ends.
func (v *vigil) serve(ctx context.Context) (err error) {
	libvirt, err := v.Connect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, libvirt.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	word, err := libvirt.Word(ctx)
	if err != nil {
		return err
	}
	clear(v.told)
	v.Tell("watching libvirt's domains")
	for _, d := range v.starts {
		v.start(ctx, libvirt, d)
	}
	v.starts = nil
	if err := v.unprepared(libvirt); err != nil {
		return err
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		if err := v.look(ctx, libvirt); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case _, more := <-word:
			if !more {
				return errors.New("it has ended the connection")
			}
		case <-look.C:
			if err := v.unprepared(libvirt); err != nil {
				return err
			}
		}
	}
}

// unprepared reports the domains for which nothing can be done.
func (v *vigil) unprepared(libvirt Hypervisor) error {
	all, err := libvirt.Unprepared()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		v.once(fmt.Sprintf("domain %s: what it has not saved is lost when its kernel dies: %s (virsh edit %s, and stop and start it)", name, all[name], name))
	}
	return nil
}

// look salvages every domain that has crashed, once.
func (v *vigil) look(ctx context.Context, libvirt Hypervisor) error {
	crashed, err := libvirt.Crashed()
	if err != nil {
		return err
	}
	before := v.seen
	v.seen = make(map[string]bool)
	for _, d := range crashed {
		this := v.run(d)
		v.seen[this] = true
		if !before[this] && ctx.Err() == nil {
			v.salvage(ctx, libvirt, d)
		}
	}
	return nil
}

// salvage brings the disks of a domain up to date, and reports the outcome.
func (v *vigil) salvage(ctx context.Context, libvirt Hypervisor, d domains.Domain) {
	v.Tell(fmt.Sprintf("domain %s: its kernel has panicked: its memory goes to a file, and then to its disks", d.Name))
	began := time.Now()
	a := v.adoption(filepath.Join(v.State, d.UUID+recordSuffix))
	done, err := v.adopt(ctx, a, d)
	if done == nil && err != nil {
		v.Tell(fmt.Sprintf("domain %s: not salvaged: %v\n"+
			"domain %s: it stays crashed, with its memory, and its disks are as they were. When the cause is removed: systemctl restart understudy-watch, or understudy salvage apply --libvirt %s --end", d.Name, err, d.Name, d.Name))
		return
	}
	if v.ended(d, done, err, began) {
		v.start(ctx, libvirt, d)
	}
}

// adoption returns the Adoption of a domain with this record.
func (v *vigil) adoption(record string) offline.Adoption {
	a := v.Adopt
	a.End, a.Record, a.Room = true, record, v.State
	return a
}

func (v *vigil) adopt(ctx context.Context, a offline.Adoption, d domains.Domain) (_ *offline.Adopted, err error) {
	if a.Note, err = json.Marshal(d); err != nil {
		return nil, err
	}
	m, err := v.Find(d.Name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return a.Run(ctx, m)
}

// ended tells what became of a domain whose QEMU has ended, and says whether it may start again.
func (v *vigil) ended(d domains.Domain, done *offline.Adopted, err error, began time.Time) bool {
	if err != nil {
		v.Tell(fmt.Sprintf("domain %s: %v", d.Name, err))
	}
	if done == nil {
		return false
	}
	if kept := v.keep(d, done); kept != nil {
		v.Tell(kept.Error())
	}
	what := v.Refused(done)
	if err == nil && len(what) == 0 {
		v.Tell(fmt.Sprintf("domain %s: all that its kernel had not saved is on its disks: %d files, after %.1f s", d.Name, done.Files(), time.Since(began).Seconds()))
		return v.Restart
	}
	for _, line := range what {
		v.Tell(fmt.Sprintf("domain %s: refused: %s", d.Name, line))
	}
	v.Tell(fmt.Sprintf("domain %s: not all is on its disks, so that it is not started; its memory is in %s", d.Name, done.Memory))
	return false
}

// keep writes the report of a domain, in the place of the one before.
func (v *vigil) keep(d domains.Domain, done *offline.Adopted) error {
	b, err := json.MarshalIndent(done, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(v.State, d.Name+".report.json")
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep report: %w", err)
	}
	return os.Rename(path+".new", path)
}

// start starts a domain again.
func (v *vigil) start(ctx context.Context, libvirt Hypervisor, d domains.Domain) {
	if err := libvirt.Start(ctx, d); err != nil {
		v.Tell(fmt.Sprintf("domain %s: %v", d.Name, err))
		return
	}
	v.Tell(fmt.Sprintf("domain %s: started again", d.Name))
}

// resume goes on with what an earlier run did not finish.
func (v *vigil) resume(ctx context.Context) error {
	left, err := filepath.Glob(filepath.Join(v.State, "*"+recordSuffix))
	if err != nil {
		return err
	}
	for _, path := range left {
		began := time.Now()
		note, done, err := v.adoption(path).Resume(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d := domains.Domain{Name: filepath.Base(path)}
		if len(note) > 0 {
			err = errors.Join(err, json.Unmarshal(note, &d))
		}
		v.Tell(fmt.Sprintf("domain %s: an earlier salvage was broken off, and goes on", d.Name))
		if v.ended(d, done, err, began) {
			v.starts = append(v.starts, d)
		}
	}
	return nil
}
