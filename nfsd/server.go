package nfsd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"understudy/link"
)

// loadLimit is how long the kernel may take to begin, and to take the records.
const loadLimit = 30 * time.Second

// Server is the kernel's NFS server in this partition.
type Server struct {
	c       link.NFS
	exports []Export
	table   []tableEntry // what exportfs made of them
	run     func(*exec.Cmd) (wait func() error, err error)
	log     func(string)

	mu     sync.Mutex
	armed  bool
	start  *start  // of the threads, while they run
	notify *helper // tells clients with locks of NFSv3, for as long as it takes
}

// start is one start of the server's threads.
type start struct {
	tracker *tracker
	cancel  func()
	threads chan error // what came of it
}

// Prepare does everything slow, without a disk and without a client: helpers,
// exports, versions and ports. run starts a process that somebody waits for, and
// log is for the console.
func Prepare(ctx context.Context, c link.NFS, run func(*exec.Cmd) (func() error, error), log func(string)) (*Server, error) {
	s := &Server{c: c, run: run, log: log}
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
	steps := []func() error{
		mountPipes,
		mountServer,
		func() error { return setLocks(c) },
		func() error { return makePlaces(s.exports) },
		s.export, // before mountd: it reads the table when it starts, and again only when a client comes
		func() error { return s.startHelpers(ctx) },
		s.Arm,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, fmt.Errorf("prepare NFS server: %w", err)
		}
	}
	return s, nil
}

// Exports are what the server exports.
func (s *Server) Exports() []Export { return s.exports }

// Arm sets what the kernel forgets with its last thread, and what [Stop] leaves
// unset. Begin does it too, but later is slower.
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

// Begin starts the server up to where it needs the disk. It returns at once.
func (s *Server) Begin(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begin(ctx)
}

func (s *Server) begin(ctx context.Context) error {
	if s.start != nil {
		return nil
	}
	if err := s.arm(); err != nil {
		return fmt.Errorf("start NFS server: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	st := &start{tracker: track(ctx, s.log), cancel: cancel, threads: make(chan error, 1)}
	go func() { st.threads <- write("threads", strconv.Itoa(s.c.Threads)) }()
	s.start = st
	return nil
}

// Start gives the server the disk, and returns when it answers and serves all
// exports. The grace begins in it.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.begin(ctx); err != nil {
		return err
	}
	if err := s.finish(ctx); err != nil {
		return fmt.Errorf("start NFS server: %w", err)
	}
	return nil
}

func (s *Server) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loadLimit, fmt.Errorf("the kernel did not come as far within %v", loadLimit))
	defer cancel()
	tell, err := attachMonitor(s.c.State)
	if err != nil {
		return err
	}
	s.start.tracker.states <- s.c.State
	g, gctx := errgroup.WithContext(ctx)
	for _, e := range s.exports {
		g.Go(func() error { return fillCaches(e, s.table) })
	}
	g.Go(func() error { return s.start.await(gctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ping(ctx); err != nil {
		return err
	}
	if !tell {
		return endLockGrace()
	}
	s.notify, err = s.spawn("sm-notify", "-d", "-f", "-P", nsmDir)
	return err
}

// await waits until the kernel has its records and its threads.
func (st *start) await(ctx context.Context) error {
	select {
	case l := <-st.tracker.loaded:
		if l.err != nil {
			return fmt.Errorf("load client records: %w", l.err)
		}
	case <-st.tracker.done:
		return errors.Join(errors.New("the kernel did not ask for its client records"), st.tracker.err)
	case <-ctx.Done():
		return fmt.Errorf("wait until the kernel asks for its client records: %w", context.Cause(ctx))
	}
	select {
	case err := <-st.threads:
		st.threads <- err // for Stop
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the threads: %w", context.Cause(ctx))
	}
}

// Stop ends the server's threads and lets go of the disk. Its clients keep their
// records: they may reclaim from whoever is next.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.notify != nil {
		s.notify.end()
		s.notify = nil
	}
	var err error
	if st := s.start; st != nil {
		select {
		case <-st.threads:
		default: // it still waits for the disk, which it will not get
			st.cancel()
			<-st.threads
		}
		err = write("threads", "0")
		st.cancel()
		<-st.tracker.done
		s.start, s.armed = nil, false
	}
	if err := errors.Join(err, detachMonitor()); err != nil {
		return fmt.Errorf("stop NFS server: %w", err)
	}
	return nil
}
