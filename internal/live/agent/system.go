package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/mounts"
	"understudy.dev/understudy/internal/live/unit"
	"understudy.dev/understudy/internal/live/wire"
)

// ServeAsService serves supervisors in a guest with its own system, whose systemd has started
// this process, and starts it again if it ends. It continues what an earlier agent had under
// way there. ready is called once the agent can be reached.
func ServeAsService(ctx context.Context, extra map[string]Verb, ready func() error) error {
	a := New(extra)
	a.system = true
	if err := errors.Join(a.resume(), ready()); err != nil {
		return err
	}
	go a.watchUnits(ctx)
	return a.Serve(ctx)
}

// state is what an agent that is started again has to know. The file that it is in does not
// outlive the kernel.
type state struct {
	Config wire.Config    `json:"config"`
	Mounts []stateMount   `json:"mounts"`
	Units  []wire.Service `json:"units"` // services that were started as units
}

type stateMount struct {
	Disk string `json:"disk"`
	Dir  string `json:"dir"`
	// Failed is why some of its data could not be written, or empty if all of it could.
	Failed string `json:"failed,omitempty"`
}

const stateFile = unit.StateDir + "/agent.json"

// keep saves what this agent has under way, if a later agent may have to continue it.
func (a *Agent) keep() error {
	if !a.system {
		return nil
	}
	s := state{Config: a.config, Units: a.units}
	for _, m := range a.mounts {
		s.Mounts = append(s.Mounts, stateMount{m.Name, m.Mount, m.failed})
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(unit.StateDir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(stateFile+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(stateFile+".new", stateFile)
	}
	if err != nil {
		return fmt.Errorf("save the agent's state: %w", err)
	}
	return nil
}

// resume continues what an earlier agent had under way.
func (a *Agent) resume() error {
	b, err := os.ReadFile(stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var s state
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return fmt.Errorf("read the state of the previous agent: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.config, a.units = s.Config, s.Units
	if p := s.Config.Beat.Period; p > 0 {
		if err := a.beat(s.Config.Beat); err != nil {
			return err
		}
	}
	if err := a.network.setUp(s.Config.NICs); err != nil {
		return err
	}
	for _, m := range s.Mounts {
		if !mounts.On(m.Dir) {
			continue
		}
		d := wire.Disk{Name: m.Disk, Mount: m.Dir} // the disk of a rehearsal, if it is not one of the pair's
		if known, err := a.disk(m.Disk); err == nil {
			d = known
		}
		path, err := devicePath(d)
		if err != nil {
			return err
		}
		again := mounted{Disk: d, device: path, unwatch: a.watchDisk(d, path), failed: m.Failed}
		_ = again.open() // save tries again, and says why not
		a.mounts = append(a.mounts, again)
	}
	return a.keep()
}

// takeBeat finds the process that an earlier agent has started to beat, with the settings in how. It
// returns a pidfd of the process, or -1. A process that beats with other settings is killed. A process of
// that name that belongs to another user is ignored.
func takeBeat(how string) (taken int) {
	taken = -1
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well-formed
	for _, l := range lines {
		b, err := os.ReadFile(l)
		args := strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00")
		if err != nil || len(args) != 2 || args[0] != beatName {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(l, "/")[2])
		var owner unix.Stat_t
		if err != nil || unix.Stat(filepath.Dir(l), &owner) != nil || int(owner.Uid) != os.Geteuid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has just ended
		}
		if args[1] != how || taken >= 0 {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it may just have ended
			unix.Close(fd)
			continue
		}
		taken = fd
	}
	return taken
}

// keepTaken starts a new process that beats when the one that was taken over ends.
func (a *Agent) keepTaken(fd int, how string) {
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if n, err := unix.Poll(fds, -1); n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	a.trouble("the process that beats ended and is started again")
	first := make(chan error, 1)
	go a.keepBeat(how, first)
	if err := <-first; err != nil {
		a.trouble("%v", err)
	}
}

// checkSystem checks that a system can do what a configuration asks of it.
func (a *Agent) checkSystem(ctx context.Context, c wire.Config) error {
	units := slices.ContainsFunc(c.Services, func(s wire.Service) bool { return s.Unit != "" && len(s.Command) == 0 })
	switch {
	case !a.system && units:
		return errors.New("a service is a systemd unit, and this guest has no systemd: give its command")
	case a.system && c.NFS != nil:
		return errors.New("an NFS server of the pair's cannot be in a system of its own: use the small guest (understudy initramfs)")
	case !a.system:
		return nil
	}
	for _, s := range c.Services {
		if s.Unit != "" {
			if err := a.checkUnit(ctx, s.Unit); err != nil {
				return fmt.Errorf("service %s: %w", s.Name, err)
			}
		}
	}
	return nil
}

// powerOff ends the whole system in good order, after this call has been answered.
func (a *Agent) powerOff(ctx context.Context, _ none) (none, error) {
	if a.system {
		_, err := a.systemctl(ctx, "--no-block", "poweroff")
		return none{}, err
	}
	go func() {
		unix.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	return none{}, nil
}
