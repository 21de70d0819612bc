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

// beatName is what a process is called that an agent started to count on the beat page. It
// does nothing else: in the agent itself a thread that comes back from the kernel may have
// to wait for what Go's runtime gives to the agent's work, or stand still while garbage is
// collected.
const beatName = "understudy-beat"

// Child does what an agent started this process for, and does not return; or it returns at
// once, if no agent did. A program with an agent in it calls it first of all.
func Child() {
	if len(os.Args) != 2 || os.Args[0] != beatName {
		return
	}
	fmt.Fprintln(os.Stderr, "understudy: beat:", count(os.Args[1]))
	os.Exit(1)
}

// beat has a process count on the beat page for as long as the agent lives.
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

// keepBeat starts the process, says what came of it, and starts it again if it ends: a beat
// that is killed is no dead kernel. It keeps its thread: the process is to end with the
// agent, and ends with the thread that started it (PR_SET_PDEATHSIG, prctl(2)).
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

// startBeat starts the process, and returns when it counts.
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

// beatLimit is how long the process may take to its first beat: under emulation that is emulated itself, the start
// of a process may take more than a minute.
const beatLimit = 10 * time.Minute

// count counts on the beat page: from a thread of real-time priority that nothing but a dead
// kernel can hold back for long, from such a thread on each CPU, and from an ordinary one.
// It returns only an error.
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

// BeatOn starts to count on a page of liveness.PageBytes, which stays mapped. This process
// is to do little else.
func BeatOn(page []byte, b wire.Beat) error {
	// Nothing is to stop these threads: no page that has to be read again, and no choice of
	// the OOM killer.
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

// ownCPUs are the numbers of the CPUs that this process may run on: where some are offline, as with nosmt, they are
// not the first ones.
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

// realTime starts a real-time thread that counts every period, or as seldom as pace says,
// in ns, on one CPU if that is not negative.
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

// realTime gives a thread, 0 for this one, a priority in the real-time class, SCHED_FIFO,
// which is 1 (include/uapi/linux/sched.h).
func realTime(tid int, priority uint32) error {
	return unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 1, Priority: priority}, 0)
}

// keepOn has a thread, 0 for this one, run on one CPU only.
func keepOn(tid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(tid, &set)
}

// ordinary counts every period for as long as there is memory to be had.
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

// sleep is in the kernel, and not in Go's runtime. A signal may cut it short.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}

// beatPage maps the shared page: the memory behind BAR 2 of the ivshmem device that has one
// page of it.
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
			continue // somebody else's
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
