package partition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/qmp"
)

// startLimit is how long QEMU may take to answer on its monitor.
const startLimit = 20 * time.Second

// Process is a running partition, or one that has ended.
type Process struct {
	Spec Spec
	QMP  *qmp.Client

	pid    int
	signal func(unix.Signal) error // nil: it has ended
	vcpus  []int                   // threads of the virtual CPUs
	ended  chan struct{}
	status error
}

// Start boots the partition. It is pinned before its first instruction, and
// it dies with this process, unless its Spec says otherwise.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	p := &Process{Spec: spec, ended: make(chan struct{})}
	if err := p.launch(); err != nil {
		return nil, fmt.Errorf("start partition %s: %w", spec.Name, err)
	}
	if err := p.bringUp(ctx); err != nil {
		p.Kill()
		<-p.ended
		return nil, fmt.Errorf("start partition %s: %w%s", spec.Name, err, p.LastWords())
	}
	return p, nil
}

func (p *Process) launch() error {
	for path, size := range map[string]uint64{p.Spec.RAMPath(): p.Spec.Memory, p.Spec.BeatPath(): 4096} {
		if err := reserve(path, size); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(p.Spec.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	c := p.Spec.command()
	fmt.Fprintf(log, "%s\n", c.line())

	cmd := exec.Command(qemu, c.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = c.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if p.Spec.Outlives {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := startOn(cmd, p.Spec.CPUs); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return notInstalled(err)
		}
		return err
	}
	p.pid, p.signal = cmd.Process.Pid, func(s unix.Signal) error { return cmd.Process.Signal(s) }
	go func() {
		p.status = cmd.Wait()
		close(p.ended)
	}()
	return nil
}

// reserve makes a file of a guest's memory, allocated in full: a page that a tmpfs cannot
// give any more is a SIGBUS for the process that touches it.
func reserve(path string, size uint64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size))
		if err == nil || !errors.Is(err, unix.EINTR) {
			if err != nil {
				return hint.New(fmt.Sprintf("reserve %d MiB in %s", size>>20, filepath.Dir(path)), err, "Enlarge that file system, or move the run directory with UNDERSTUDY_RUN.")
			}
			return nil
		}
	}
}

func (p *Process) bringUp(ctx context.Context) error {
	ctx, stop := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("QEMU does not answer within %v", startLimit))
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.ended:
			cancel(errors.New("QEMU has ended"))
		case <-ctx.Done():
		}
	}()
	err := p.meet(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// meet connects to QEMU, pins its CPUs, and lets them run, if they do not.
func (p *Process) meet(ctx context.Context) error {
	client, err := qmp.Dial(ctx, p.Spec.qmpPath())
	if err != nil {
		return err
	}
	p.QMP = client
	cpus, err := client.QueryCPUs(ctx)
	if err != nil {
		return err
	}
	for i, cpu := range cpus {
		p.vcpus = append(p.vcpus, cpu.ThreadID)
		if err := pin(cpu.ThreadID, p.home(i)); err != nil {
			return err
		}
	}
	return client.Cont(ctx)
}

// Withdraw pins the partition's threads to its own CPUs again, as before Spread.
func (p *Process) Withdraw() error {
	tids, err := p.threads()
	if err != nil {
		return err
	}
	for _, tid := range tids {
		home := p.Spec.CPUs
		if i := slices.Index(p.vcpus, tid); i >= 0 {
			home = p.home(i)
		}
		if err := pin(tid, home); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// threads are the ids of all threads of the process.
func (p *Process) threads() ([]int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.PID()))
	if err != nil {
		return nil, err
	}
	tids := make([]int, len(tasks))
	for i, t := range tasks {
		if tids[i], err = strconv.Atoi(filepath.Base(t)); err != nil {
			return nil, err
		}
	}
	return tids, nil
}

// home is the CPU that virtual CPU i is pinned to.
func (p *Process) home(i int) []int {
	n := i % len(p.Spec.CPUs)
	return p.Spec.CPUs[n : n+1]
}

// LastWords returns QEMU's output, on a line of its own; empty if there was none.
func (p *Process) LastWords() string {
	b, _ := os.ReadFile(p.Spec.logPath())
	if _, said, _ := strings.Cut(string(b), "\n"); said != "" { // after its command line
		return "\nqemu said: " + said
	}
	return ""
}

// PID is the process id of QEMU.
func (p *Process) PID() int { return p.pid }

// Ended is closed when the process has ended and was reaped.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Status says how the process ended; it is valid once Ended is closed.
func (p *Process) Status() error { return p.status }

// Freeze stops all threads of the process where they are (SIGSTOP): nothing of the guest
// runs any more, and no request of its disks begins. QMP's stop would wait for those in
// flight and flush, 75 to 85 ms with dirty disks.
func (p *Process) Freeze() { p.send(unix.SIGSTOP) }

// send sends the process a signal; it may have ended.
func (p *Process) send(s unix.Signal) {
	if p.signal != nil {
		_ = p.signal(s)
	}
}

// Kill ends the process without asking it: SIGKILL neither drains nor syncs.
// Wait for Ended to know that it is done.
func (p *Process) Kill() {
	if p.QMP != nil {
		_ = p.QMP.Close()
	}
	p.send(unix.SIGKILL)
}

// Effort returns what the partition's threads have done since they began, and the steal time
// of the CPUs that it may run on: those of its first thread, which Spread changes too.
func (p *Process) Effort() (liveness.Effort, error) {
	tids, err := p.threads()
	if err != nil {
		return nil, err
	}
	effort := make(liveness.Effort, len(tids))
	for _, id := range tids {
		thread, err := taskEffort(fmt.Sprintf("/proc/%d/task/%d", p.PID(), id))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // a thread of QEMU's pool ended
		}
		if err != nil {
			return nil, err
		}
		effort[id] = thread
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, err
	}
	mayRun := cpusOf(p.PID())
	for cpu, stolen := range stolenIn(string(stat)) {
		if mayRun(cpu) {
			effort[-1-cpu] = liveness.Thread{Waited: stolen}
		}
	}
	return effort, nil
}

// cpusOf reports on which CPUs a process may run: on all if the kernel does not say, as where more
// CPUs are possible than a CPUSet holds (sched_setaffinity(2), EINVAL).
func cpusOf(pid int) func(cpu int) bool {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(pid, &set); err != nil {
		return func(int) bool { return true }
	}
	return set.IsSet
}

// userTick is the unit of times in /proc/stat (proc(5); USER_HZ is 100 on amd64).
const userTick = 10 * time.Millisecond

// stolenIn returns the steal time of each CPU, from /proc/stat: the 8th number after the CPU's
// name.
func stolenIn(stat string) map[int]time.Duration {
	stolen := make(map[int]time.Duration)
	for line := range strings.Lines(stat) {
		fields := strings.Fields(line)
		if len(fields) < 9 || !strings.HasPrefix(fields[0], "cpu") {
			continue
		}
		cpu, err := strconv.Atoi(fields[0][len("cpu"):])
		if err != nil {
			continue // the sum of all
		}
		if ticks, err := strconv.ParseInt(fields[8], 10, 64); err == nil {
			stolen[cpu] = time.Duration(ticks) * userTick
		}
	}
	return stolen
}

// held are the states of a thread that would run if it could (proc(5), stat): ready or
// running, waiting in the host's kernel for a page or a disk, stopped by a signal or a tracer.
const held = "RDTt"

// taskEffort reads one thread's state, which comes after its name in
// parentheses, and its times on a CPU and waiting for one, in ns
// (Documentation/scheduler/sched-stats.rst).
func taskEffort(dir string) (t liveness.Thread, err error) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return t, err
	}
	schedstat, err := os.ReadFile(dir + "/schedstat")
	if err != nil {
		return t, err
	}
	state := stat[bytes.LastIndexByte(stat, ')')+1:]
	if _, err := fmt.Sscan(string(schedstat), (*int64)(&t.Ran), (*int64)(&t.Waited)); err != nil || len(state) < 2 {
		return t, fmt.Errorf("read state of thread %s: %q, %q", filepath.Base(dir), stat, schedstat)
	}
	t.Ready = strings.IndexByte(held, state[1]) >= 0
	return t, nil
}

// Spread lets the partition's threads run on these CPUs too: a dead side's
// share falls to the one that takes over.
func (p *Process) Spread(cpus []int) error {
	tids, err := p.threads()
	if err != nil {
		return err
	}
	for _, tid := range tids {
		if err := pin(tid, slices.Concat(cpus, p.Spec.CPUs)); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// PanicEnd is what a kernel that panicked says last, after its other CPUs have stopped
// (kernel/panic.c).
const PanicEnd = "---[ end Kernel panic"

// Bounds on the log of a guest's console, in bytes, beyond which its oldest part is dropped: the
// log is on the same file system as the guest's memory.
const (
	consoleLimit = 16 << 20
	consoleKept  = 1 << 20
)

// TrimConsole keeps the console's log within bounds: if it is longer, its end is saved as
// the console's old log and it is emptied. QEMU goes on appending to the emptied log.
func (p *Process) TrimConsole() error {
	path := p.Spec.ConsoleLogPath()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() <= consoleLimit {
		return err
	}
	end := make([]byte, consoleKept)
	n, err := f.ReadAt(end, st.Size()-consoleKept)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return errors.Join(os.WriteFile(p.Spec.path(".console.old.log"), end[:n], 0o600), f.Truncate(0))
}

// Remove deletes the files of a partition that does not run, its memory among them.
func (s *Spec) Remove() error {
	files, err := filepath.Glob(s.path(".*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if err := os.Remove(f); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func pin(tid int, cpus []int) error {
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(tid, &set); err != nil {
		return fmt.Errorf("pin thread %d to CPUs %v: %w", tid, cpus, err)
	}
	return nil
}

// launcher is the one thread that starts partitions. It never ends, which
// matters: a child's parent-death signal comes when the thread that started it
// ends (prctl(2), PR_SET_PDEATHSIG). And what it starts inherits its CPUs.
var launcher = sync.OnceValue(func() chan<- func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for job := range jobs {
			job()
		}
	}()
	return jobs
})

// deafTo are the signals that ask a process to end, and that a partition does not receive:
// a service manager sends them to all processes of a service at once (systemd.kill(5)), but the
// supervisor must end the guest in good order before QEMU ends.
var deafTo = []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP}

// startDeaf starts a command from a thread that blocks those signals, a mask which the
// new process inherits (signal(7)); QEMU leaves it as it is.
func startDeaf(cmd *exec.Cmd) (err error) {
	var block, before unix.Sigset_t
	for _, s := range deafTo {
		block.Val[(s-1)/64] |= 1 << ((s - 1) % 64)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &before); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	defer func() { err = errors.Join(err, unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)) }()
	return cmd.Start()
}

// startOn starts a command on these CPUs.
func startOn(cmd *exec.Cmd, cpus []int) error {
	done := make(chan error)
	launcher() <- func() {
		err := pin(0, cpus)
		if err == nil {
			err = startDeaf(cmd)
		}
		done <- err
	}
	return <-done
}
