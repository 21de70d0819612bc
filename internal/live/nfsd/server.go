package nfsd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// loadLimit is how long the kernel may take to begin, and to take the records.
const loadLimit = 30 * time.Second

// Server is the kernel's NFS server in this partition.
type Server struct {
	c       wire.NFS
	exports []Export
	table   []tableEntry // what exportfs made of them
	run     func(*exec.Cmd) (wait func() error, err error)
	log     func(string)
	trouble func(what, ends string)
	daemons []*daemon // that were started here

	mu      sync.Mutex
	refused error // why the server is not to start
	armed   bool
	start   *start  // of the threads, while they run
	notify  *helper // notifies clients with NFSv3 locks, for as long as that takes
}

// start is one start of the server's threads.
type start struct {
	tracker *tracker
	ctx     context.Context // of everything that runs beside the threads
	cancel  func()
	threads chan error     // the result of starting them
	beside  sync.WaitGroup // what runs beside the threads once Start has returned
	began   time.Time
	early   bool // begun before Start: in a takeover
}

// Prepare does everything slow that needs neither a disk nor a client: helpers,
// exports, versions and ports. run starts a process and returns a function that waits
// for it, and log writes to the console. trouble tells what does not work; or, with the text of such a trouble as ends,
// that it works again.
func Prepare(ctx context.Context, c wire.NFS, run func(*exec.Cmd) (func() error, error), log func(string), trouble func(what, ends string)) (*Server, error) {
	s := &Server{c: c, run: run, log: log, trouble: trouble}
	for _, line := range c.Exports {
		e, err := ParseExport(line)
		if err != nil {
			return nil, err
		}
		s.exports = append(s.exports, e)
	}
	if err := unix.Sethostname([]byte(c.Host)); err != nil {
		return nil, fmt.Errorf("set host name: %w", err)
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"pipes", mountPipes},
		{"files", mountServer},
		{"locks", setLocks},
		{"directories", func() error { return makeDirectories(s.exports) }},
		{"exports", s.export},
		{"helpers", func() error { return s.startHelpers(ctx) }},
		{"ports", s.Arm},
	}
	w := newStopwatch()
	for _, step := range steps {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("prepare NFS server: %w", err)
		}
		w.lap(step.name)
	}
	log("NFS server prepared: " + w.String())
	return s, nil
}

// Exports are what the server exports.
func (s *Server) Exports() []Export { return s.exports }

// Arm sets what the kernel forgets with its last thread, and so with [Server.Stop], which does
// not set it again. Begin does it too if it was not done, but then it takes time there.
func (s *Server) Arm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arm()
}

func (s *Server) arm() error {
	if s.armed {
		return nil
	}
	if err := arm(s.c); err != nil {
		return err
	}
	s.armed = true
	return nil
}

// Begin starts the server, in a takeover, up to where it needs the disk. It returns
// at once.
func (s *Server) Begin(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.start.early = true
	return nil
}

func (s *Server) begin(ctx context.Context) error {
	if s.start != nil {
		return nil
	}
	if err := s.arm(); err != nil {
		return fmt.Errorf("start NFS server: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	st := &start{tracker: track(ctx, s.log, s.trouble), ctx: ctx, cancel: cancel, threads: make(chan error, 1), began: time.Now()}
	go func() { st.threads <- write("threads", strconv.Itoa(s.c.Threads)) }()
	s.start = st
	return nil
}

// Refuse makes Start fail: its clients' records are not what they must be.
func (s *Server) Refuse(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = why
}

// Start gives the server the disk, and returns when the server answers and serves all
// exports; in a takeover, those that can be served: the others are reported on the
// console. The grace period begins during Start.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused != nil {
		return fmt.Errorf("start NFS server: %w", s.refused)
	}
	early := s.start != nil && s.start.early
	if early && graceSpent(time.Since(s.start.began), s.c.Grace) {
		s.log("NFS server begins again: most of the grace for locks of NFSv3 is over")
		if err := s.end(); err != nil {
			return fmt.Errorf("begin NFS server again: %w", err)
		}
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	s.start.early = early
	if err := s.finish(ctx); err != nil {
		return fmt.Errorf("start NFS server: %w", err)
	}
	return nil
}

func (s *Server) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loadLimit, fmt.Errorf("it took more than %v", loadLimit))
	defer cancel()
	w := newStopwatch()
	s.start.tracker.states <- s.c.State // first: the kernel goes on by itself
	var tell bool
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		tell, err = attachMonitor(cmp.Or(s.c.Monitor, filepath.Join(s.c.State, nsmState)))
		return err
	})
	for _, e := range s.exports {
		g.Go(func() error {
			err := fillCaches(e, s.table)
			if err == nil || !s.start.early {
				return err
			}
			s.log(err.Error())
			return nil
		})
	}
	if s.start.early {
		g.Go(func() error {
			if err := fillAddresses(s.c.State); err != nil {
				s.log(err.Error())
			}
			return nil
		})
	}
	g.Go(func() error { return s.start.await(gctx, w) })
	if err := g.Wait(); err != nil {
		return err
	}
	w.lap("monitor and exports, beside that")
	if err := ping(ctx); err != nil {
		return err
	}
	w.lap("answer")
	s.log("NFS server started: " + w.String())
	st := s.start
	s.beside(st, func() error { return keepAddresses(st.ctx, s.c.State) })
	if !tell {
		return endLockGrace()
	}
	s.beside(st, func() error { return boundLockGrace(st.ctx, s.c.Grace, endLockGrace) })
	go s.notifyClients()
	return nil
}

// beside runs do, which ends with st.ctx, beside the threads.
func (s *Server) beside(st *start, do func() error) {
	st.beside.Go(func() {
		if err := do(); err != nil {
			s.log(err.Error())
		}
	})
}

// notifyClients tells clients with NFSv3 locks to reclaim them. However long that
// takes, nobody waits for it.
func (s *Server) notifyClients() {
	s.mu.Lock() // Start holds it until it returns
	defer s.mu.Unlock()
	if s.start == nil {
		return // Stop has run in between
	}
	var err error
	if s.notify, err = s.spawn("sm-notify", "-d", "-f", "-P", nsmDir); err != nil {
		s.log("locks of NFSv3 may be lost: " + err.Error())
	}
}

// rounds is how often a rehearsal starts the server alone, before it starts together with
// the other services: each of the first starts is quicker than the one before.
const rounds = 2

// Rehearse starts and stops the server on a disk that has the exported directories, and
// makes it answer the first call of a client that is unknown to it. The server is
// armed when Rehearse returns.
func (s *Server) Rehearse(ctx context.Context) error {
	for range rounds {
		if err := s.Start(ctx); err != nil {
			return err
		}
		w := newStopwatch()
		if err := forgetClients(); err != nil {
			return err
		}
		if err := probe(ctx); err != nil {
			return err
		}
		w.lap("first call of an unknown client")
		s.log("NFS server rehearsed: " + w.String())
		if err := s.Stop(); err != nil {
			return err
		}
		if err := s.Arm(); err != nil {
			return err
		}
	}
	return nil
}

// await waits until the kernel has its records and its threads.
func (st *start) await(ctx context.Context, w *stopwatch) error {
	select {
	case l := <-st.tracker.loaded:
		if l.err != nil {
			return fmt.Errorf("load client records: %w", l.err)
		}
		w.lap(fmt.Sprintf("%d client records", l.clients))
	case <-st.tracker.done:
		return errors.Join(errors.New("the kernel did not ask for its client records"), st.tracker.err)
	case <-ctx.Done():
		return fmt.Errorf("wait until the kernel asks for its client records: %w", context.Cause(ctx))
	}
	select {
	case err := <-st.threads:
		st.threads <- err // for Stop
		w.lap("threads")
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the threads: %w", context.Cause(ctx))
	}
}

// Stop ends the server's threads and lets go of the disk. Its clients keep their
// records: they may reclaim from the next server.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.notify != nil {
		s.notify.end()
		s.notify = nil
	}
	err := s.end()
	s.leave()
	if err := errors.Join(err, detachMonitor()); err != nil {
		return fmt.Errorf("stop NFS server: %w", err)
	}
	return nil
}

// end ends the threads, and what runs beside them.
func (s *Server) end() error {
	st := s.start
	if st == nil {
		return nil
	}
	select {
	case <-st.threads:
	default: // it still waits for the disk, which it will not get
		st.cancel()
		<-st.threads
	}
	err := write("threads", "0")
	st.cancel()
	<-st.tracker.done
	st.beside.Wait()
	s.start, s.armed = nil, false
	return err
}
