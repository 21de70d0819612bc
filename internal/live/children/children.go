// Package children distinguishes child processes that somebody waits for from orphans, which the process that
// inherits them must reap: PID 1, or a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER). It also finds the
// descendants of a process.
package children

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Children are the child processes of this process.
type Children struct {
	mu     sync.Mutex
	waited map[int]bool // processes that somebody waits for
}

// New returns the children of a process that has none yet.
func New() *Children { return &Children{waited: make(map[int]bool)} }

// Start starts a process that Wait is called for.
func (c *Children) Start(cmd *exec.Cmd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	c.waited[cmd.Process.Pid] = true
	return nil
}

// Wait waits until a process that Start has started ends.
func (c *Children) Wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	c.mu.Lock()
	delete(c.waited, cmd.Process.Pid)
	c.mu.Unlock()
	return err
}

// Run starts a process and waits until it ends.
func (c *Children) Run(cmd *exec.Cmd) error {
	if err := c.Start(cmd); err != nil {
		return err
	}
	return c.Wait(cmd)
}

// Reap reaps orphans for as long as this process lives. It looks at a child before it
// reaps it (WNOWAIT), so that it never reaps one that Wait waits for.
func (c *Children) Reap() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		pid := siginfoPid(&info)
		c.mu.Lock()
		waited := c.waited[pid]
		c.mu.Unlock()
		if err != nil || waited {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
}

// Left reports whether this process has children that have not been reaped.
func Left() bool {
	return !errors.Is(unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil), unix.ECHILD)
}

// Descendants are the children of a process, their children, and so on, except for those that have ended.
func Descendants(of int) (all []int) {
	parents := make(map[int]int)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f, err := Stat(pid); err == nil && len(f) > 1 && f[0] != "Z" && f[0] != "X" { // on an error it has just ended
			parents[pid], _ = strconv.Atoi(f[1])
		}
	}
	for pid := range parents {
		for p, n := parents[pid], 0; p != 0 && n < len(parents); p, n = parents[p], n+1 {
			if p == of {
				all = append(all, pid)
				break
			}
		}
	}
	return all
}

// Stat returns the fields of /proc/PID/stat after the process's name, which may contain any character: the state, the
// parent, and so on (proc(5), stat).
func Stat(pid int) ([]string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])), nil
}

// siginfoPid reads si_pid from what waitid(2) fills in: on amd64 the union begins
// at offset 16, after si_signo, si_errno, si_code and padding
// (include/uapi/asm-generic/siginfo.h).
func siginfoPid(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}
