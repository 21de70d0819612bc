package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/unit"
	"understudy.dev/understudy/internal/live/wire"
)

// unitOf is the unit that a service runs as.
func unitOf(s wire.Service) string {
	if s.Unit != "" {
		return s.Unit
	}
	return "understudy-" + s.Name + ".service"
}

// command runs a program of systemd's and returns its output. It waits for as long as ctx allows: by
// default the program would give up if systemd did not answer within 25 s (sd_bus_call(3)), and on a
// busy machine what systemd is asked for may take longer.
func (a *Agent) command(ctx context.Context, name string, args ...string) (string, error) {
	var out capped
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_BUS_TIMEOUT=1d")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := a.children.Run(cmd); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

func (a *Agent) systemctl(ctx context.Context, args ...string) (string, error) {
	return a.command(ctx, "systemctl", args...)
}

// unitState is what systemd says of a unit (systemctl show).
type unitState map[string]string

// show asks systemd for properties of units, and returns them by unit.
func (a *Agent) show(ctx context.Context, units ...string) (map[string]unitState, error) {
	out, err := a.systemctl(ctx, append([]string{"show", "--property=Id,LoadState,ActiveState,Result,ConditionResult,FragmentPath,DropInPaths"}, units...)...)
	if err != nil {
		return nil, err
	}
	return parseShow(out), nil
}

// parseShow reads properties of units: lines of NAME=VALUE, and an empty one between two units.
func parseShow(text string) map[string]unitState {
	all := make(map[string]unitState)
	for block := range strings.SplitSeq(text, "\n\n") {
		s := make(unitState)
		for line := range strings.Lines(block) {
			if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
				s[name] = value
			}
		}
		if s["Id"] != "" {
			all[s["Id"]] = s
		}
	}
	return all
}

// checkUnit checks that a unit exists, and starts only if its role is here.
func (a *Agent) checkUnit(ctx context.Context, name string) error {
	states, err := a.show(ctx, name)
	if err != nil {
		return err
	}
	s := states[name]
	advice := "Put it there, or correct its name."
	switch {
	case s == nil:
		err = errors.New("it has another name: " + strings.Join(slices.Sorted(maps.Keys(states)), ", "))
	case s["LoadState"] != "loaded":
		err = fmt.Errorf("systemd says that it is %s", s["LoadState"])
	default:
		return startsByRole(name, append([]string{s["FragmentPath"]}, strings.Fields(s["DropInPaths"])...))
	}
	return hint.New("unit "+name, err, advice)
}

// startsByRole checks that a unit has the triggering conditions of its role, and no others, each of which would be
// enough to start it. files are the files that the unit is made of, in their order.
func startsByRole(name string, files []string) error {
	var all []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read unit %s: %w", name, err)
		}
		all = triggers(all, string(b))
	}
	want := unit.RoleConditions(name)
	for _, c := range want {
		if !slices.Contains(all, c) {
			return hint.New("unit "+name, errors.New("it would start on both sides, whatever their role"), "Prepare the root disk for it: understudy image prepare --unit "+name)
		}
	}
	for _, c := range all {
		if !slices.Contains(want, c) {
			return hint.New("unit "+name, fmt.Errorf("it would start on both sides, whatever their role, since its own triggering condition %s is enough", c),
				"Write into /etc/systemd/system/"+name+".d/00-conditions.conf: [Unit], an empty ConditionPathExists=, which takes all conditions of the unit back, and those that it needs without the |.")
		}
	}
	return nil
}

// triggers adds the triggering conditions of one more file of a unit to those of the files before: conditions with |,
// of which one is enough (systemd.unit(5)). An empty condition takes back all that came before it.
func triggers(all []string, file string) []string {
	for line := range strings.Lines(file) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case !ok || !strings.HasPrefix(name, "Condition"):
		case value == "":
			all = nil
		case value[0] == '|':
			all = append(all, name+"="+value)
		}
	}
	return all
}

// startUnit starts a service as a unit, and returns when systemd says that it runs.
func (a *Agent) startUnit(ctx context.Context, s wire.Service) error {
	name := unitOf(s)
	role := unit.RoleFile(name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(role), 0o755), os.WriteFile(role, nil, 0o644)); err != nil {
		return fmt.Errorf("start service %s: %w", s.Name, err)
	}
	a.units = append(a.units, s) // to be stopped, even if the start fails
	err := a.keep()
	if err == nil {
		err = a.runUnit(ctx, s)
	}
	var states map[string]unitState
	if err == nil {
		states, err = a.show(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("start service %s: %w", s.Name, err)
	}
	switch is := states[name]; {
	case is["ActiveState"] == "active" || is["ActiveState"] == "reloading":
	case is["ConditionResult"] == "no":
		return fmt.Errorf("start service %s: conditions of unit %s do not hold", s.Name, name)
	case is["ActiveState"] == "inactive" && is["Result"] == "success": // it is done
	default:
		return fmt.Errorf("start service %s: unit %s is %s (%s)", s.Name, name, is["ActiveState"], is["Result"])
	}
	return nil
}

// runUnit starts the unit of a service: one that the system has, or one made of the service's
// command, which systemd starts again when it fails, unless it fails too often.
func (a *Agent) runUnit(ctx context.Context, s wire.Service) error {
	if s.Unit != "" {
		_, err := a.systemctl(ctx, "start", s.Unit)
		return err
	}
	if len(s.Command) == 0 {
		return errors.New("it has no command")
	}
	name := unitOf(s)
	args := append([]string{
		"--quiet", "--unit=" + name, "--description=Service " + s.Name + " of the pair", "--service-type=exec",
		"--property=Restart=on-failure", "--property=RestartSec=" + restartPause.String(),
		"--property=StartLimitIntervalSec=" + failuresIn.String(), fmt.Sprintf("--property=StartLimitBurst=%d", failures+1),
		"--property=TimeoutStopSec=" + grace(s).String(),
		"--",
	}, literal(s.Command)...)
	_, err := a.command(ctx, "systemd-run", args...)
	if err != nil && ctx.Err() == nil { // systemd still has the unit if it failed before
		if _, reset := a.systemctl(ctx, "reset-failed", name); reset == nil {
			_, err = a.command(ctx, "systemd-run", args...)
		}
	}
	return err
}

// literal escapes the words of a command so that systemd leaves them as they are: otherwise it
// would replace $NAME and ${NAME} from the environment (systemd.service(5), COMMAND LINES).
func literal(command []string) []string {
	words := make([]string, len(command))
	for i, w := range command {
		words[i] = strings.ReplaceAll(w, "$", "$$")
	}
	return words
}

// stopUnits stops the services that run as units, last started first, and removes the role
// files without which they do not start here.
func (a *Agent) stopUnits(ctx context.Context) error {
	for len(a.units) > 0 {
		last := a.units[len(a.units)-1]
		name := unitOf(last)
		_, err := a.systemctl(ctx, "stop", name)
		if err != nil && last.Unit == "" { // systemd does not have the unit of a command that is done
			if states, shown := a.show(ctx, name); shown == nil && states[name]["LoadState"] == "not-found" {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("stop service %s: %w", last.Name, err)
		}
		if err := os.Remove(unit.RoleFile(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		a.units = a.units[:len(a.units)-1]
		if err := a.keep(); err != nil {
			return err
		}
	}
	return nil
}

// unitsEvery is the time between two checks of whether units run.
const unitsEvery = 2 * time.Second

// watchUnits reports units that were started and have failed.
func (a *Agent) watchUnits(ctx context.Context) {
	told := make(map[string]bool)
	for ctx.Err() == nil {
		time.Sleep(unitsEvery)
		a.mu.Lock()
		var names []string
		for _, s := range a.units {
			names = append(names, unitOf(s))
		}
		a.mu.Unlock()
		if len(names) == 0 {
			clear(told)
			continue
		}
		states, err := a.show(ctx, names...)
		if err != nil {
			continue // systemd is busy: try the next time
		}
		for _, name := range names {
			s := states[name]
			if failed := s["ActiveState"] == "failed"; failed != told[name] {
				told[name] = failed
				if failed {
					a.trouble("unit %s has failed (%s), and systemd does not start it again", name, s["Result"])
				}
			}
		}
	}
}

// unitLimits is how many times readyLimit a unit may take until its port answers, if systemd says
// that it runs: a database may have a long log to recover from. The caller has its own limits, too.
const unitLimits = 20

// commandLimits is the same for a command, which may be slow on a busy machine.
const commandLimits = 3

// awaitService waits until a service is ready. A unit that has failed is not waited for.
func (a *Agent) awaitService(ctx context.Context, s wire.Service) error {
	limits := unitLimits
	if !a.system {
		limits = commandLimits
	}
	for n := 1; ; n++ {
		err := a.awaitReady(ctx, s)
		if err == nil {
			return nil
		}
		if trouble := a.unitTrouble(ctx, s); trouble != nil || n == limits || ctx.Err() != nil {
			return errors.Join(err, trouble)
		}
	}
}

// unitTrouble is what systemd says of the unit of a service that is not ready, or nil if the unit runs.
func (a *Agent) unitTrouble(ctx context.Context, s wire.Service) error {
	if !a.system {
		return nil
	}
	name := unitOf(s)
	states, err := a.show(ctx, name)
	if err != nil || states[name]["ActiveState"] == "active" {
		return err
	}
	return fmt.Errorf("its unit %s is %s (%s): systemctl status %[1]s there says more", name, states[name]["ActiveState"], states[name]["Result"])
}
