package fault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Directory is a directory mounted at another place, where changes to files fail on
// command, as on a disk that breaks, or in a file system that is full. A separate process
// serves it: one that also used it could wait for itself.
type Directory struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

// Environment variables that make Child serve a directory at another place.
const ofVariable, atVariable = "UNDERSTUDY_FAULT_OF", "UNDERSTUDY_FAULT_AT"

// Child serves a directory and does not return, if Mount started this process for that.
// Otherwise it returns at once. A test's TestMain calls it first of all.
func Child() {
	at := os.Getenv(atVariable)
	if at == "" {
		return
	}
	if err := serve(os.Getenv(ofVariable), at, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Mount mounts a directory at another place. The process that serves it has a high
// priority, because a process that waits for it looks idle.
func Mount(directory, at string) (*Directory, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d := &Directory{cmd: exec.Command("nice", "-n", "-20", program)}
	d.cmd.Env, d.cmd.Stderr = append(os.Environ(), ofVariable+"="+directory, atVariable+"="+at), os.Stderr
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	d.out = bufio.NewReader(out)
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := d.answer(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount: %w", err), d.cmd.Wait())
	}
	return d, nil
}

// Tell gives an order, and returns how many changes were counted until then:
//
//	count PID        count changes by that process, from 0 on
//	fail N ERRNO     from the change counted as N on, all changes by anyone fail
//	heal             no change fails any more
//
// A change is a write(2), an fsync(2), or an fallocate(2).
func (d *Directory) Tell(format string, args ...any) (int, error) {
	if _, err := fmt.Fprintf(d.in, format+"\n", args...); err != nil {
		return 0, err
	}
	return d.answer()
}

func (d *Directory) answer() (n int, err error) {
	_, err = fmt.Fscan(d.out, &n)
	return n, err
}

// Unmount ends it. What is still open may go on.
func (d *Directory) Unmount() error {
	_, err := fmt.Fprintln(d.in, "end")
	return errors.Join(err, d.cmd.Wait())
}

// serve mounts a directory, and carries out the orders that it reads.
func serve(directory, at string, in io.Reader, out io.Writer) error {
	root, err := fs.NewLoopbackRoot(directory)
	if err != nil {
		return err
	}
	b := &breaker{}
	_, err = fs.Mount(at, &breakable{root.(*fs.LoopbackNode), b}, &fs.Options{MountOptions: fuse.MountOptions{FsName: "fault", AllowOther: true, DirectMount: true}})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, 0)
	for lines := bufio.NewScanner(in); lines.Scan() && lines.Text() != "end"; {
		n, err := b.told(lines.Text())
		if err != nil {
			return err
		}
		fmt.Fprintln(out, n)
	}
	return unix.Unmount(at, unix.MNT_DETACH)
}

// breaker decides what fails.
type breaker struct {
	mu     sync.Mutex
	pid    int // the process whose changes count; 0 means none
	n      int // changes counted
	at     int // the first change that fails; 0 means none
	errno  syscall.Errno
	broken bool
}

func (b *breaker) told(line string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.n
	var err error
	switch verb, rest, _ := strings.Cut(line, " "); verb {
	case "count":
		b.n, b.at, b.broken = 0, 0, false
		_, err = fmt.Sscan(rest, &b.pid)
	case "fail":
		_, err = fmt.Sscan(rest, &b.at, (*uintptr)(&b.errno))
	case "heal":
		b.at, b.broken = 0, false
	default:
		err = fmt.Errorf("unknown order %q", line)
	}
	return n, err
}

// change counts a change, and returns the error with which it fails, or 0.
func (b *breaker) change(ctx context.Context) syscall.Errno {
	b.mu.Lock()
	defer b.mu.Unlock()
	caller, known := fuse.FromContext(ctx)
	if b.pid != 0 && known && processOf(caller.Pid) == b.pid {
		b.n++
		b.broken = b.broken || b.n == b.at
	}
	if b.broken {
		return b.errno
	}
	return 0
}

// processOf returns the process that a thread belongs to (proc(5), status), or 0 if it has ended.
func processOf(thread uint32) (pid int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if value, found := strings.CutPrefix(line, "Tgid:"); found {
			_, _ = fmt.Sscan(value, &pid) // it is a number
		}
	}
	return pid
}

// breakable is a file or a directory, and openFile an open one.
type breakable struct {
	*fs.LoopbackNode
	breaker *breaker
}

func (n *breakable) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	return &breakable{child.(*fs.LoopbackNode), n.breaker}
}

type openFile struct {
	*fs.LoopbackFile
	breaker *breaker
}

func (n *breakable) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, how, errno := n.LoopbackNode.Open(ctx, flags)
	if f, ok := h.(*fs.LoopbackFile); ok {
		return &openFile{f, n.breaker}, how, errno
	}
	return h, how, errno
}

// PassthroughFd keeps the kernel from writing without us.
func (f *openFile) PassthroughFd() (int, bool) { return 0, false }

func (f *openFile) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if errno := f.breaker.change(ctx); errno != 0 {
		return 0, errno
	}
	return f.LoopbackFile.Write(ctx, data, off)
}

func (f *openFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	if errno := f.breaker.change(ctx); errno != 0 {
		return errno
	}
	return f.LoopbackFile.Fsync(ctx, flags)
}

func (f *openFile) Allocate(ctx context.Context, off, size uint64, mode uint32) syscall.Errno {
	if errno := f.breaker.change(ctx); errno != 0 {
		return errno
	}
	return f.LoopbackFile.Allocate(ctx, off, size, mode)
}
