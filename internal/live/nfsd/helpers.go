package nfsd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Files and directories of nfs-utils.
const (
	stateDir    = "/var/lib/nfs"
	etab        = stateDir + "/etab"
	exportsFile = "/etc/exports.d/understudy.exports"
)

// nsmDir is where the status monitor keeps its state. Before the disks come it has no
// records; then nsmState, a directory in the state directory, is mounted over it.
const (
	nsmDir   = "/run/understudy-nsm"
	nsmState = "nsm"
)

// helperLimit is how long a helper may take until it answers. It only bounds a hang: a guest that boots on a busy
// machine takes its time. againLimit is the same for one that is started again, since a takeover may wait for it.
const (
	helperLimit = 3 * time.Minute
	againLimit  = 30 * time.Second
)

// makeDirectories makes the files and directories that the helpers need. Export directories, which
// will be on the shared disks, are also made now, below the mount points:
// exportfs(8) refuses to export a directory that does not exist.
func makeDirectories(exports []Export) error {
	dirs := []string{stateDir, stateDir + "/sm", stateDir + "/sm.bak", stateDir + "/v4recovery", nsmDir, nsmDir + "/sm", nsmDir + "/sm.bak",
		filepath.Dir(exportsFile), "/run/rpcbind", "/run/sendsigs.omit.d"}
	for _, e := range exports {
		dirs = append(dirs, e.Path)
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	for _, f := range []string{etab, stateDir + "/rmtab", "/etc/exports"} {
		fd, err := os.OpenFile(f, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return fmt.Errorf("make file: %w", err)
		}
		fd.Close()
	}
	return nil
}

// startHelpers starts those of rpcbind, mountd and the status monitor that are not
// running yet, and returns when they answer. The kernel registers its ports with
// rpcbind, asks mountd who may mount, and tells the status monitor of NFSv3
// locks.
func (s *Server) startHelpers(ctx context.Context) error {
	mountd := &daemon{port: mountPort, command: []string{"rpc.mountd", "-F", "-p", strconv.Itoa(mountPort)}}
	statd := &daemon{port: statusPort, command: []string{"rpc.statd", "-F", "-L", "-P", nsmDir, "-p", strconv.Itoa(statusPort), "-o", strconv.Itoa(notifyPort)}}
	rpcbind := &daemon{port: 111, command: []string{"rpcbind", "-f"}, registered: []*daemon{mountd, statd}}
	for _, d := range []*daemon{rpcbind, mountd, statd} {
		if listens(d.port) {
			continue
		}
		if err := s.startDaemon(ctx, d); err != nil {
			return err
		}
		s.daemons = append(s.daemons, d)
		go s.keep(d)
	}
	return nil
}

func listens(port int) bool {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// await waits until a helper answers at a port.
func (h *helper) await(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, helperLimit, fmt.Errorf("port %d did not answer within %v", port, helperLimit))
	defer cancel()
	for !listens(port) {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-h.done:
			return errors.Join(errors.New("it ended"), h.err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// helper is a process that we started.
type helper struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// daemon is a helper that is to run for as long as this system does.
type daemon struct {
	port       int
	command    []string
	registered []*daemon // what has registered with it, and must again when it has ended
	running    atomic.Pointer[helper]
	inside     bool // started while a disk was there, which may be its working directory
}

// startDaemon starts a daemon, and returns when it answers.
func (s *Server) startDaemon(ctx context.Context, d *daemon) error {
	h, err := s.spawn(d.command...)
	if err != nil {
		return err
	}
	if err := h.await(ctx, d.port); err != nil {
		h.end()
		return fmt.Errorf("wait for %s: %w", d.command[0], err)
	}
	d.running.Store(h)
	return nil
}

// A daemon that has ended is started again after a pause. The pause is longer after each further end, unless the daemon
// ran for steady before that.
const (
	firstPause = 200 * time.Millisecond
	morePause  = 5 // times
	longPause  = time.Minute
	steady     = time.Minute
)

// keep starts a daemon again whenever it ends. One that ends again soon, or does not start, is a trouble until it
// answers.
func (s *Server) keep(d *daemon) {
	pause := firstPause
	for name := d.command[0]; ; {
		began, h := time.Now(), d.running.Load()
		<-h.done
		if time.Since(began) >= steady {
			pause = firstPause
		}
		err := h.err
		s.log(fmt.Sprintf("%s ended (%v), and is started again", name, err))
		told := ""
		for again := pause > firstPause; ; again = true {
			if again && told == "" {
				told = fmt.Sprintf("NFS: %s does not keep running (%v): some clients may not be able to mount, or to lock with version 3", name, err)
				s.trouble(told, "")
			}
			time.Sleep(pause)
			pause = min(morePause*pause, longPause)
			if err = s.startAgain(d); err == nil {
				break
			}
		}
		if told != "" {
			s.trouble("NFS: "+name+" runs again", told)
		}
		s.registerAgain(d)
	}
}

func (s *Server) startAgain(d *daemon) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.inside = s.start != nil
	ctx, cancel := context.WithTimeout(context.Background(), againLimit)
	defer cancel()
	return s.startDaemon(ctx, d)
}

// leave ends the daemons that may keep a disk from being unmounted. They are started again.
func (s *Server) leave() {
	for _, d := range s.daemons {
		if d.inside {
			d.running.Load().end()
		}
	}
}

// registerAgain lets register again what had registered with a daemon that was started again. The kernel does that only
// with its first thread.
func (s *Server) registerAgain(d *daemon) {
	if len(d.registered) == 0 {
		return
	}
	for _, r := range d.registered {
		if h := r.running.Load(); h != nil {
			h.end() // keep starts it
		}
	}
	s.trouble(fmt.Sprintf("NFS: %s was started again: clients of version 3 that ask it for the ports of the server and of its locks get no answer until the server is started again", d.command[0]), "")
}

// spawn starts a helper, whose output goes to the console.
func (s *Server) spawn(command ...string) (*helper, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	wait, err := s.run(cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w (install nfs-kernel-server, nfs-common and rpcbind in the guest)", command[0], err)
	}
	h := &helper{cmd: cmd, done: make(chan struct{})}
	go func() {
		h.err = wait()
		close(h.done)
	}()
	return h, nil
}

// end kills a helper and waits for its end.
func (h *helper) end() {
	_ = h.cmd.Process.Kill() // it may have ended
	<-h.done
}

// export tells mountd the exports. exportfs(8) also tests whether the kernel would
// export them, and complains of directories whose disk is not mounted yet: what
// counts is that the exports are in its table.
func (s *Server) export() error {
	if err := os.WriteFile(exportsFile, []byte(strings.Join(s.c.Exports, "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("write exports: %w", err)
	}
	h, err := s.spawn("exportfs", "-ra")
	if err != nil {
		return err
	}
	<-h.done
	table, err := os.ReadFile(etab)
	if err != nil {
		return fmt.Errorf("read exports: %w", err)
	}
	s.table = parseTable(string(table))
	for _, e := range s.exports {
		for _, c := range e.Clients {
			if !strings.Contains(string(table), e.Path+"\t"+c.Name+"(") {
				return errors.Join(fmt.Errorf("exportfs did not take %s for %s: its table is %q", e.Path, c.Name, table), h.err)
			}
		}
	}
	return nil
}

// attachMonitor bind-mounts the status monitor's state, a directory on a disk that has just been
// mounted, where the monitor looks for it. It reports whether any client must be told of
// our restart.
func attachMonitor(dir string) (clients bool, err error) {
	for _, d := range []string{dir + "/sm", dir + "/sm.bak"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return false, fmt.Errorf("make status monitor's directory: %w", err)
		}
	}
	if err := unix.Mount(dir, nsmDir, "", unix.MS_BIND, ""); err != nil {
		return false, fmt.Errorf("mount status monitor's state: %w", err)
	}
	for _, d := range []string{"/sm", "/sm.bak"} {
		names, err := os.ReadDir(dir + d)
		if err != nil {
			return false, fmt.Errorf("read status monitor's state: %w", err)
		}
		clients = clients || len(names) > 0
	}
	return clients, nil
}

// ownMonitor gives the files that our status monitor, which runs as root, has written to the owner of sm, which is the
// user that the directory's own monitor runs as: it could not read them otherwise. Other files keep their owner.
func ownMonitor(dir string) error {
	var owner unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "sm"), &owner); err != nil {
		return err
	}
	files := []string{filepath.Join(dir, "state")}
	for _, d := range []string{"sm", "sm.bak"} {
		names, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil {
			return err
		}
		for _, n := range names {
			files = append(files, filepath.Join(dir, d, n.Name()))
		}
	}
	for _, f := range files {
		if err := os.Lchown(f, int(owner.Uid), int(owner.Gid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// detachMonitor undoes attachMonitor, so that the disk can be unmounted.
func detachMonitor() error {
	if err := ownMonitor(nsmDir); err != nil {
		return fmt.Errorf("give status monitor's state back: %w", err)
	}
	err := unix.Unmount(nsmDir, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil // it is not mounted
	}
	if err != nil {
		return fmt.Errorf("unmount status monitor's state: %w", err)
	}
	return nil
}
