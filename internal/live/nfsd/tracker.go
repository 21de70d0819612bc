package nfsd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// pipeFS is where rpc_pipefs is mounted, with the pipe over which the kernel talks to
// its client tracking daemon (NFSD_PIPE_DIR, NFSD_CLD_PIPE,
// fs/nfsd/nfs4recover.c).
const (
	pipeFS  = "/run/rpc_pipefs"
	pipeCLD = pipeFS + "/nfsd/cld"
)

// pipeLimit is how long the kernel may take until it makes its pipe. It makes it
// after lockd has registered with rpcbind.
const pipeLimit = 20 * time.Second

// tracker is the client tracking daemon for one start of the server.
type tracker struct {
	// states gets the state directory once that can be read: the kernel waits for it.
	states chan string
	loaded chan loaded // the result of reading it
	done   chan struct{}
	err    error // valid once done is closed

	records *records
	log     func(string)
	trouble func(what, ends string)
	told    string    // the trouble that records could not be written or removed; empty: none
	tried   time.Time // when that was last tried again
}

// loaded says how many clients may reclaim.
type loaded struct {
	clients int
	err     error
}

// track serves the kernel from now on, until the kernel removes its pipe.
func track(ctx context.Context, log func(string), trouble func(what, ends string)) *tracker {
	t := &tracker{states: make(chan string, 1), loaded: make(chan loaded, 1), done: make(chan struct{}), log: log, trouble: trouble}
	go func() {
		defer close(t.done)
		if t.err = t.run(ctx); t.err != nil {
			log("client tracking: " + t.err.Error())
		}
	}()
	return t
}

func (t *tracker) run(ctx context.Context) error {
	fd, err := openPipe(ctx)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 2*cldSizeV2)
	for {
		n, err := readPipe(ctx, fd, buf, t.retry)
		if err != nil || n == 0 {
			return err
		}
		m, err := checkCLD(buf[:n])
		if err != nil {
			return err
		}
		if err := t.answer(ctx, fd, m); err != nil {
			return err
		}
	}
}

// openPipe waits for the kernel to make its pipe. The kernel, in turn, looks every
// 100 ms whether somebody has opened it.
func openPipe(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, pipeLimit)
	defer cancel()
	for {
		fd, err := unix.Open(pipeCLD, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) {
			return -1, fmt.Errorf("open %s: %w", pipeCLD, err)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return -1, fmt.Errorf("open %s: %w", pipeCLD, err)
		}
	}
}

// readPipe reads a message. It returns no bytes once the kernel has removed the pipe.
// Where a read of another pipe would block, a read of this one returns no bytes
// (rpc_pipe_read, net/sunrpc/rpc_pipe.c), hence the poll, which ends now and then to
// see whether the server was stopped, and to call idle.
func readPipe(ctx context.Context, fd int, buf []byte, idle func()) (int, error) {
	for ctx.Err() == nil {
		idle()
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, 1000); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("poll client tracking pipe: %w", err)
		}
		if p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
			return 0, nil
		}
		if p[0].Revents&unix.POLLIN == 0 {
			continue
		}
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EPIPE):
			return 0, nil
		case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return 0, fmt.Errorf("read client tracking pipe: %w", err)
		case n > 0:
			return n, nil
		}
	}
	return 0, context.Cause(ctx)
}

// answer does what the kernel asks for.
func (t *tracker) answer(ctx context.Context, fd int, m cldMessage) error {
	switch m.command() {
	case cldGetVersion:
		return writePipe(fd, m.answerVersion())
	case cldGraceStart:
		return t.load(ctx, fd, m)
	}
	if t.records == nil {
		return writePipe(fd, m.answer(t.status(errors.New("the kernel asks for a client before its grace has begun"))))
	}
	if m.command() == cldGraceDone {
		return writePipe(fd, m.answer(t.change(t.records.endGrace())))
	}
	c, err := m.client()
	if err != nil {
		return writePipe(fd, m.answer(t.status(err)))
	}
	switch m.command() {
	case cldCreate:
		err = t.records.create(c)
	case cldRemove:
		err = t.records.remove(c)
	default: // Cld_Check is of version 0
		err = fmt.Errorf("%w: client tracking command %d", unix.EOPNOTSUPP, m.command())
	}
	return writePipe(fd, m.answer(t.change(err)))
}

// retryEvery is how often the tracker tries again to make a change to the records durable. The kernel does not ask
// again: for it, a client is recorded whatever the answer was (nfsd4_cld_create, fs/nfsd/nfs4recover.c).
const retryEvery = time.Second

// change returns the outcome of a change to the records as a status, and tells if it is to be tried again.
func (t *tracker) change(err error) int16 {
	if t.told == "" && len(t.records.unsaved) > 0 {
		t.told = fmt.Sprintf("NFS: %v: until that succeeds, a client may not get back its locks if this side dies, or may get what others have been given", err)
		t.trouble(t.told, "")
		t.tried = time.Now()
	}
	return t.status(err)
}

// retry tries again to make changes to the records durable, if that has failed.
func (t *tracker) retry() {
	if t.told == "" || time.Since(t.tried) < retryEvery {
		return
	}
	t.tried = time.Now()
	if t.records.retry() == nil {
		t.trouble("NFS: all records of clients are as they are to be", t.told)
		t.told = ""
	}
}

// load waits for the disk, and then gives the kernel the records on it.
func (t *tracker) load(ctx context.Context, fd int, m cldMessage) error {
	var state string
	select {
	case state = <-t.states:
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), writePipe(fd, m.answer(-int16(unix.EIO))))
	}
	r, skipped, err := openRecords(state)
	if err != nil {
		t.loaded <- loaded{err: err}
		return writePipe(fd, m.answer(t.status(err)))
	}
	for _, s := range skipped {
		t.log(s.Error())
	}
	t.records = r
	for _, c := range r.known {
		if err = writePipe(fd, m.record(c)); err != nil {
			break
		}
	}
	if err == nil {
		err = writePipe(fd, m.answer(0))
	}
	t.loaded <- loaded{clients: len(r.known), err: err}
	return err
}

// status returns an error as a status of the kernel's protocol, and logs it to the console.
func (t *tracker) status(err error) int16 {
	if err == nil {
		return 0
	}
	t.log(err.Error())
	var e unix.Errno
	if errors.As(err, &e) {
		return -int16(e)
	}
	return -int16(unix.EIO)
}

func writePipe(fd int, m cldMessage) error {
	n, err := unix.Write(fd, m)
	if err != nil {
		return fmt.Errorf("answer client tracking command %d: %w", m.command(), err)
	}
	if n != len(m) {
		return fmt.Errorf("answer client tracking command %d: %d of %d bytes taken", m.command(), n, len(m))
	}
	return nil
}

// mountPipes mounts rpc_pipefs.
func mountPipes() error {
	if err := os.MkdirAll(pipeFS, 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(pipeFS, "nfsd")); err == nil {
		return nil
	}
	if err := unix.Mount("rpc_pipefs", pipeFS, "rpc_pipefs", 0, ""); err != nil {
		return fmt.Errorf("mount rpc_pipefs: %w (is module sunrpc loaded?)", err)
	}
	return nil
}
