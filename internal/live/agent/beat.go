package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/wire"
)

// ivshmem's PCI identity (QEMU, docs/specs/ivshmem-spec.txt).
const ivshmemVendor, ivshmemDevice = "0x1af4", "0x1110"

// counters are the words of the beat page, which is mapped for the life of the process.
type counters []byte

// at is the counter at an offset, a multiple of 8.
func (c counters) at(offset int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&c[offset]))
}

// beatName is the name of the process that an agent starts to count on the beat page. The
// process does nothing else. In the agent itself, a thread that returns from the kernel may
// have to wait until Go's runtime schedules it among the agent's other work, or stop while
// garbage is collected.
const beatName = "understudy-beat"

// Child does the work that an agent started this process for, and does not return. If no
// agent started it, Child returns at once. A program that contains an agent calls it first.
func Child() {
	if len(os.Args) != 2 || os.Args[0] != beatName {
		return
	}
	fmt.Fprintln(os.Stderr, "understudy: beat:", count(os.Args[1]))
	os.Exit(1)
}

// beat keeps a process counting on the beat page for as long as the agent lives.
func (a *Agent) beat(b wire.Beat) error {
	page, err := beatPage()
	if err != nil {
		return err
	}
	a.counters = counters(page)
	how, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if a.system {
		if fd := takeBeat(string(how)); fd >= 0 {
			go a.keepTaken(fd, string(how))
			return nil
		}
	}
	first := make(chan error)
	go a.keepBeat(string(how), first)
	return <-first
}

// keepBeat starts the process, sends the result to first, and starts the process again if it
// ends: a killed beat does not mean a dead kernel. It keeps its thread, since the process is
// to end with the agent, and ends with the thread that started it (PR_SET_PDEATHSIG, prctl(2)).
func (a *Agent) keepBeat(how string, first chan<- error) {
	runtime.LockOSThread()
	cmd, err := a.startBeat(how)
	first <- err
	for err == nil {
		a.trouble("the process that beats ended (%v) and is started again", a.children.Wait(cmd))
		for cmd, err = a.startBeat(how); err != nil; cmd, err = a.startBeat(how) {
			time.Sleep(restartPause)
		}
	}
}

// startBeat starts the process, and returns once it counts.
func (a *Agent) startBeat(how string) (*exec.Cmd, error) {
	before := a.counters.at(liveness.CounterOffset).Load()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{beatName, how}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if a.system { // a newer agent takes it over
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	if err := a.children.Start(cmd); err != nil {
		return nil, fmt.Errorf("start the process that beats: %w", err)
	}
	err := poll(context.Background(), beatLimit, func() (bool, error) {
		return a.counters.at(liveness.CounterOffset).Load() != before, nil
	})
	if err != nil {
		_ = cmd.Process.Kill()
		return nil, errors.Join(fmt.Errorf("wait for the first beat: %w", err), a.children.Wait(cmd))
	}
	return cmd, nil
}

// beatLimit is how long the process may take until its first beat: under nested emulation, the start of a process may
// take more than a minute.
const beatLimit = 10 * time.Minute

// count counts on the beat page: from a thread of real-time priority that nothing but a dead
// kernel can hold back for long, from such a thread on each CPU, and from an ordinary one.
// It returns only if it fails.
func count(how string) error {
	var b wire.Beat
	if err := json.Unmarshal([]byte(how), &b); err != nil {
		return fmt.Errorf("decode the heartbeat settings: %w", err)
	}
	page, err := beatPage()
	if err != nil {
		return err
	}
	if err := BeatOn(page, b); err != nil {
		return err
	}
	for {
		_ = unix.Pause() // Go's runtime does not know of the threads that count
	}
}

// BeatOn starts to count on a page of liveness.PageBytes bytes, which must stay mapped. The
// process that calls it should do little else.
func BeatOn(page []byte, b wire.Beat) error {
	// Nothing may stop these threads: neither a page that has to be read in again, nor the
	// OOM killer.
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	binary.LittleEndian.PutUint64(page, liveness.PageMagic)
	c := counters(page)
	pace := c.at(liveness.PaceOffset)
	pace.Store(0)
	if err := c.realTime(liveness.CounterOffset, -1, b.Period, pace); err != nil {
		return err
	}
	if b.CPU > 0 {
		cpus, err := ownCPUs()
		if err != nil {
			return err
		}
		for i, p := range liveness.CPUPulses(len(cpus)) {
			if err := c.realTime(p.Offset, cpus[i], b.CPU/liveness.PulsesPerLimit, nil); err != nil {
				return err
			}
		}
	}
	if b.Scheduler > 0 {
		go c.ordinary(liveness.SchedulerPulse().Offset, b.Scheduler/liveness.PulsesPerLimit)
	}
	return nil
}

// ownCPUs are the numbers of the CPUs that this process may run on. Where some CPUs are offline, as with nosmt, these
// are not the lowest numbers.
func ownCPUs() (cpus []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("find the CPUs for the heartbeat threads: %w", err)
	}
	for cpu := range 8 * int(unsafe.Sizeof(set)) {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// realTime starts a real-time thread that counts every period, or every pace ns if that is
// longer. The thread runs on the given CPU only, unless cpu is negative.
func (c counters) realTime(offset, cpu int, period time.Duration, pace *atomic.Uint64) error {
	tid, err := startCounting(c.at(offset), period, pace)
	if err == nil {
		err = realTime(tid, beatPriority)
	}
	if err == nil && cpu >= 0 {
		err = keepOn(tid, cpu)
	}
	if err != nil {
		return fmt.Errorf("start a real-time thread that beats: %w", err)
	}
	return nil
}

// Priorities of real-time threads.
const (
	beatPriority    = 50
	highestPriority = 99
)

// realTime gives a thread (0 means this one) a priority in the real-time class SCHED_FIFO,
// which is policy 1 (include/uapi/linux/sched.h).
func realTime(tid int, priority uint32) error {
	return unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 1, Priority: priority}, 0)
}

// keepOn makes a thread (0 means this one) run on one CPU only.
func keepOn(tid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(tid, &set)
}

// ordinary counts in every period in which it can allocate a page of memory.
func (c counters) ordinary(offset int, period time.Duration) {
	runtime.LockOSThread()
	for {
		page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err == nil {
			err = unix.Munmap(page)
		}
		if err == nil {
			c.at(offset).Add(1)
		}
		sleep(period)
	}
}

// sleep sleeps in the kernel, and not in Go's runtime. A signal may cut it short.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}

// beatPage maps the shared page: BAR 2 of the ivshmem device whose memory is
// liveness.PageBytes long.
func beatPage() ([]byte, error) {
	devices, err := filepath.Glob("/sys/bus/pci/devices/*")
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if !isDevice(d, ivshmemVendor, ivshmemDevice) {
			continue
		}
		if st, err := os.Stat(d + "/resource2"); err != nil || st.Size() != liveness.PageBytes {
			continue // another use of ivshmem
		}
		if err := os.WriteFile(d+"/enable", []byte("1"), 0); err != nil {
			return nil, fmt.Errorf("enable beat page %s: %w", filepath.Base(d), err)
		}
		f, err := os.OpenFile(d+"/resource2", os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open beat page: %w", err)
		}
		defer f.Close()
		page, err := unix.Mmap(int(f.Fd()), 0, liveness.PageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map beat page: %w", err)
		}
		return page, nil
	}
	return nil, errors.New("no ivshmem device for the heartbeat: was the partition started by this supervisor?")
}

func isDevice(dir, vendor, device string) bool {
	for file, want := range map[string]string{"vendor": vendor, "device": device} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || strings.TrimSpace(string(b)) != want {
			return false
		}
	}
	return true
}
