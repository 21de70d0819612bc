// Package agent runs inside a partition and answers its supervisor. As PID 1 of the small
// guest, or as a service of a larger one, it sends the heartbeat, mounts disks, writes
// salvaged data, and starts and stops the services of the role.
//
// # Caveats
//
// The agent trusts its supervisor, which provides the machine that the agent runs on.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/children"
	"understudy.dev/understudy/internal/live/filewriter"
	"understudy.dev/understudy/internal/live/nfsd"
	"understudy.dev/understudy/internal/live/wire"
)

// Verb answers one kind of call. New takes verbs in addition to the agent's own.
type Verb func(ctx context.Context, conn *wire.Conn, body json.RawMessage) (any, error)

// Agent serves one supervisor.
type Agent struct {
	verbs map[string]Verb
	conn  atomic.Pointer[wire.Conn] // to the supervisor; nil while none is connected

	mu       sync.Mutex
	config   wire.Config
	counters counters  // nil if no heartbeat is configured
	mounts   []mounted // in the order of mounting
	services []*service
	system   bool           // the guest runs systemd: services are its units
	units    []wire.Service // services that were started as units
	nfs      *nfsd.Server   // nil if there is no NFS server
	children *children.Children

	network network
}

// New returns an agent that answers extra verbs too.
func New(extra map[string]Verb) *Agent {
	a := &Agent{children: children.New()}
	a.verbs = map[string]Verb{
		wire.Configure: call(a.configure),
		wire.Activate:  call(a.activateDisk),
		wire.Read:      call(a.read),
		wire.Write:     call(a.write),
		wire.Mount:     call(a.mount),
		wire.Name:      call(a.name),
		wire.Apply:     call(a.apply),
		wire.Begin:     call(a.begin),
		wire.Start:     call(a.start),
		wire.Stop:      call(a.stop),
		wire.Sync:      call(a.sync),
		wire.PowerOff:  call(a.powerOff),
		wire.Crash:     call(a.crash),
		wire.Rehearse:  call(a.rehearse),
		wire.Acquaint:  call(a.acquaint),
		wire.Announce:  call(a.announce),
		wire.Tell:      call(a.tell),
		wire.Exec:      call(a.exec),
	}
	for name, v := range extra {
		a.verbs[name] = v
	}
	return a
}

// call makes a verb of a method with a typed request and answer.
func call[In, Out any](f func(context.Context, In) (Out, error)) Verb {
	return func(ctx context.Context, _ *wire.Conn, body json.RawMessage) (any, error) {
		var in In
		if len(body) > 0 {
			if err := json.Unmarshal(body, &in); err != nil {
				return nil, fmt.Errorf("decode request: %w", err)
			}
		}
		return f(ctx, in)
	}
}

type none struct{}

// Serve greets the supervisor on the agent's port and answers its calls; when that one
// disconnects, it serves the next. It returns only when the port cannot be used any more.
func (a *Agent) Serve(ctx context.Context) error {
	// A goroutine in a blocking call keeps its processor until the runtime's
	// monitor takes it away, which may be 10 ms: have enough processors for
	// all goroutines that block at once.
	runtime.GOMAXPROCS(runtime.NumCPU() + filewriter.Workers)
	for {
		if err := a.serveOne(ctx); err != nil {
			return err
		}
	}
}

// serveOne serves one supervisor until it disconnects. Calls that are in flight then are canceled.
func (a *Agent) serveOne(ctx context.Context) error {
	port, err := openPort(ctx, wire.PortName)
	if err != nil {
		return err
	}
	defer port.Close()
	if err := port.awaitHost(ctx); err != nil {
		return err
	}
	conn := wire.New(port, wire.FromSupervisor, func(ctx context.Context, verb string, body json.RawMessage) (any, error) {
		v := a.verbs[verb]
		if v == nil {
			return nil, errors.New("this agent does not know the verb: it may be older than its supervisor; build the guest's image again")
		}
		return v(ctx, a.conn.Load(), body)
	})
	a.conn.Store(conn)
	defer a.conn.Store(nil)
	greeting, err := a.greet()
	if err != nil {
		return err
	}
	if err := conn.Notify(wire.Hello, greeting); err != nil {
		return nil // the supervisor is gone already
	}
	if err := conn.Serve(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "understudy:", err)
	}
	return ctx.Err()
}

func (a *Agent) greet() (wire.Greeting, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return wire.Greeting{}, fmt.Errorf("ask kernel release: %w", err)
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return wire.Greeting{}, fmt.Errorf("ask boot id: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return wire.Greeting{
		Release:    unix.ByteSliceToString(uts.Release[:]),
		BootID:     strings.TrimSpace(string(id)),
		Checker:    haveChecker() == nil,
		Layers:     haveLayers(),
		Configured: a.config.Partition != "",
	}, nil
}

// configure does everything slow that a role needs, before there is any crash:
// the beat, the network interfaces with their addresses.
func (a *Agent) configure(ctx context.Context, c wire.Config) (none, error) {
	if err := a.checkSystem(ctx, c); err != nil {
		return none{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.config = c
	if c.Beat.Period > 0 {
		if err := a.beat(c.Beat); err != nil {
			return none{}, err
		}
	}
	if err := a.network.setUp(c.NICs); err != nil {
		return none{}, err
	}
	if err := a.prepareNFS(ctx, c.NFS); err != nil {
		return none{}, err
	}
	return none{}, a.keep()
}

// sync makes what was written to the mounted shared disks durable.
func (a *Agent) sync(context.Context, none) (none, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.mounts {
		if err := a.save(&a.mounts[i]); err != nil {
			return none{}, err
		}
	}
	return none{}, nil
}

// crash kills the kernel through sysrq-c, which dereferences a null pointer. A silent
// death is a hang.
func (a *Agent) crash(_ context.Context, r wire.CrashRequest) (none, error) {
	if r.Silent {
		return none{}, hang()
	}
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		return none{}, fmt.Errorf("crash by sysrq: %w", err)
	}
	return none{}, errors.New("the kernel survived sysrq c")
}

// hang makes each CPU run nothing but a spinning thread of the highest real-time priority.
// Before that it removes the share of CPU time that other threads have by default
// (Documentation/scheduler/sched-rt-group.rst).
func hang() error {
	if err := os.WriteFile("/proc/sys/kernel/sched_rt_runtime_us", []byte("-1"), 0); err != nil {
		return fmt.Errorf("let real-time threads have all of the CPUs: %w", err)
	}
	var ready sync.WaitGroup
	var failed atomic.Bool
	for cpu := range runtime.NumCPU() {
		ready.Add(1)
		go func() {
			runtime.LockOSThread()
			if err := keepOn(0, cpu); err != nil {
				failed.Store(true)
			}
			ready.Done()
			ready.Wait()
			_ = realTime(0, highestPriority) // it spins in any case
			for !failed.Load() {
			}
		}()
	}
	ready.Wait()
	if failed.Load() {
		return errors.New("cannot pin a thread to each CPU")
	}
	select {}
}
