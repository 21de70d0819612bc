package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// service is a command that runs while its partition is active.
type service struct {
	wire.Service
	agent *Agent
	done  chan struct{} // closed when the service has ended and is not started again

	mu      sync.Mutex
	cmd     *exec.Cmd
	stopped bool          // the service was told to end
	ended   chan struct{} // closed when the service is told to end
}

// A service that fails is started again, unless it fails so often.
const (
	failures      = 3
	failuresIn    = time.Minute
	restartPause  = 200 * time.Millisecond
	restartPauses = 5 // the pause is this many times as long after each further failure in that time
)

// again returns the pause before a service is started again that has failed at these times, the last one just
// now, and how often it has failed within failuresIn. After more than failures in that time it is not started again.
func again(failed []time.Time) (pause time.Duration, often int) {
	last := failed[len(failed)-1]
	for _, at := range failed {
		if last.Sub(at) < failuresIn {
			pause, often = max(restartPause, pause*restartPauses), often+1
		}
	}
	return pause, often
}

// readyLimit is how long a service may take until its port answers.
const readyLimit = 30 * time.Second

// start starts the services of the role, in the order of the configuration, and
// returns when they are ready. It waits no longer than r.Within, if that is not 0. The NFS server
// comes last: the grace of its clients runs from its start on, and they cannot reach it before start returns.
func (a *Agent) start(ctx context.Context, r wire.StartRequest) (wire.StartResult, error) {
	if r.Within == 0 {
		return wire.StartResult{}, a.startAll(ctx, func(wire.Service) bool { return true })
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.network.again(a.system, a.config.NICs); err != nil {
		a.trouble("%v", err) // the others serve
	}
	var result wire.StartResult
	failed := func(name string, err error) wire.Unready {
		u := wire.Unready{Service: name, Reason: err.Error()}
		result.Unready = append(result.Unready, u)
		return u
	}
	end := time.Now().Add(r.Within)
	for i, s := range a.config.Services {
		share := time.Until(end) / time.Duration(len(a.config.Services)-i)
		began := time.Now()
		limited, cancel := context.WithTimeoutCause(ctx, share, fmt.Errorf("not within %v", share.Round(time.Second)))
		begun, err := a.startOne(limited, s)
		cancel()
		if ctx.Err() != nil {
			return result, context.Cause(ctx)
		}
		if err != nil {
			if u := failed(s.Name, err); begun {
				go a.followUnready(s, u)
			}
			continue
		}
		fmt.Fprintf(os.Stderr, "understudy: service %s is up after %v\n", s.Name, time.Since(began).Round(time.Millisecond))
	}
	if err := a.startNFS(ctx); err != nil {
		failed("NFS", err)
	}
	return result, nil
}

// startAll starts those services that are wanted. Each must become ready.
func (a *Agent) startAll(ctx context.Context, wanted func(wire.Service) bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.network.again(a.system, a.config.NICs); err != nil {
		return err
	}
	for _, s := range a.config.Services {
		if !wanted(s) {
			continue
		}
		if _, err := a.startOne(ctx, s); err != nil {
			return err
		}
	}
	return a.startNFS(ctx)
}

// startOne starts a service, and waits until it is ready. If it fails with begun true, the service may
// still become ready.
func (a *Agent) startOne(ctx context.Context, s wire.Service) (begun bool, err error) {
	if a.system {
		err = a.startUnit(ctx, s)
	} else {
		err = a.startService(s)
	}
	if err != nil {
		return a.system && ctx.Err() != nil, err // systemd goes on with what it was asked for
	}
	return true, a.awaitService(ctx, s)
}

// followUnready reports when a service that was not ready in time is ready after all. It checks for as
// long as the service is to run here.
func (a *Agent) followUnready(s wire.Service, u wire.Unready) {
	for a.isStarted(s) {
		if a.awaitReady(context.Background(), s) == nil && a.unitTrouble(context.Background(), s) == nil {
			a.notify(wire.TroubleNotice{What: "service " + s.Name + " is ready now", Ends: u.String()})
			return
		}
		time.Sleep(unitsEvery)
	}
}

// isStarted says whether a service was started here and not stopped again.
func (a *Agent) isStarted(s wire.Service) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.services, func(started *service) bool { return started.Name == s.Name }) ||
		slices.ContainsFunc(a.units, func(u wire.Service) bool { return u.Name == s.Name })
}

// dialLimit is how long a service may take to answer at one of its addresses, before another is tried.
const dialLimit = 3 * time.Second

// awaitReady waits until a service answers, at the loopback or at an address of the role: it may
// listen at one of them only.
func (a *Agent) awaitReady(ctx context.Context, s wire.Service) error {
	if s.Ready == 0 {
		return nil
	}
	at := a.network.addresses()
	d := net.Dialer{Timeout: dialLimit}
	err := poll(ctx, readyLimit, func() (bool, error) {
		for _, host := range at {
			conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(s.Ready)))
			if err == nil {
				return true, conn.Close()
			}
		}
		return false, nil // not yet
	})
	if err != nil {
		return fmt.Errorf("wait until service %s listens on port %d: %w", s.Name, s.Ready, err)
	}
	return nil
}

func (a *Agent) startService(s wire.Service) error {
	if len(s.Command) == 0 {
		return fmt.Errorf("service %s has no command", s.Name)
	}
	svc := &service{Service: s, agent: a, done: make(chan struct{}), ended: make(chan struct{})}
	if err := svc.start(); err != nil {
		return err
	}
	a.services = append(a.services, svc)
	go svc.keep()
	return nil
}

// start starts the command, unless the service is to end.
func (s *service) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errors.New("it has been stopped")
	}
	cmd := exec.Command(s.Command[0], s.Command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.agent.children.Start(cmd); err != nil {
		return fmt.Errorf("start service %s: %w", s.Name, err)
	}
	s.cmd = cmd
	return nil
}

// wait returns when the command has ended. If it failed, wait kills what is left of its process group.
func (s *service) wait() error {
	err := s.agent.children.Wait(s.cmd)
	if err != nil && !s.isStopped() {
		_ = unix.Kill(-s.cmd.Process.Pid, unix.SIGKILL) // there may be nothing left
	}
	return err
}

// run starts the command, and returns when it has ended, or could not be started.
func (s *service) run() error {
	if err := s.start(); err != nil {
		return err
	}
	return s.wait()
}

// keep starts the service again when it has failed. A service that ends by itself with
// status 0 is done.
func (s *service) keep() {
	defer close(s.done)
	var failed []time.Time
	for err := s.wait(); ; err = s.run() {
		if s.isStopped() {
			return
		}
		if err == nil {
			fmt.Fprintf(os.Stderr, "understudy: service %s is done\n", s.Name)
			return
		}
		fmt.Fprintf(os.Stderr, "understudy: service %s ended: %v\n", s.Name, err)
		failed = append(failed[max(0, len(failed)-failures):], time.Now())
		pause, often := again(failed)
		if often > failures {
			s.agent.trouble("service %s: it ended %d times within %v, the last time with %v, and is not started again", s.Name, failures+1, failuresIn, err)
			return
		}
		select {
		case <-s.ended:
			return
		case <-time.After(pause):
		}
	}
}

func (s *service) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// stop ends the services, and unmounts the shared disks.
func (a *Agent) stop(ctx context.Context, _ none) (none, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endServices()
	if err := a.stopUnits(ctx); err != nil {
		return none{}, err
	}
	return none{}, errors.Join(a.stopNFS(), a.unmountAll(ctx))
}

// EndServices ends the services that are commands, and leaves the disks mounted.
func (a *Agent) EndServices() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.endServices()
}

// endServices ends the services that are commands, last started first.
func (a *Agent) endServices() {
	for i := len(a.services) - 1; i >= 0; i-- {
		a.services[i].end()
	}
	a.services = nil
}

// grace is how long a service may take to end after SIGTERM: killLimit if the supervisor does not say.
func grace(s wire.Service) time.Duration { return cmp.Or(s.Stop, killLimit) }

// killLimit is how long a process may take to be gone after SIGKILL.
const killLimit = 2 * time.Second

// end asks the service's process group to end, and kills it if it does not within its limit.
// The command may be gone long before the processes that it started.
func (s *service) end() {
	s.mu.Lock()
	s.stopped = true
	close(s.ended)
	pid := s.cmd.Process.Pid
	s.mu.Unlock()
	_ = unix.Kill(-pid, unix.SIGTERM) // it may be gone
	if !s.gone(pid, grace(s.Service)) {
		_ = unix.Kill(-pid, unix.SIGKILL)
		s.gone(pid, killLimit)
	}
}

// gone waits, within a limit, until the command has ended and nothing is left of the process
// group that its first process led.
func (s *service) gone(pid int, limit time.Duration) bool {
	err := poll(context.Background(), limit, func() (bool, error) {
		select {
		case <-s.done:
			return errors.Is(unix.Kill(-pid, 0), unix.ESRCH), nil
		default:
			return false, nil
		}
	})
	return err == nil
}

// Run starts a program as a child of this process, which may be PID 1, and returns when it has ended.
func (a *Agent) Run(cmd *exec.Cmd) error { return a.children.Run(cmd) }
