// Package bare is the understudy on a bare machine: PID 1 of the second kernel, which
// watches the first, fences it when it dies, and takes over what it had.
package bare

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/metal"
)

// Main is PID 1 of the understudy. If this kernel is not one, it returns false at once. version is
// this program's version.
func Main(ctx context.Context, version string) bool {
	if err := agent.MountKernel(); err != nil {
		return false // whatever is PID 1 instead says why
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil || !strings.Contains(string(line), metal.UnderstudyParameter) {
		return false
	}
	self, err := metal.OpenSelf()
	if err != nil {
		fmt.Fprintln(os.Stderr, "understudy:", err)
		halt()
	}
	speakTo(self.Log())
	err = self.Config.SameVersion(version)
	if err == nil {
		err = run(ctx, self)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "understudy:", err)
		time.Sleep(time.Second) // until it is in the log
		self.Enter(metal.Failed)
	}
	halt()
	return true
}

// halt stays: PID 1 must not end, and the machine is not this kernel's to turn off.
func halt() { select {} }

// speakTo sends what this process and the kernel say to w.
func speakTo(w io.Writer) {
	r, pipe, err := os.Pipe()
	if err != nil {
		return
	}
	go func() { _, _ = io.Copy(w, r) }()
	_ = unix.Dup3(int(pipe.Fd()), 1, 0)
	_ = unix.Dup3(int(pipe.Fd()), 2, 0)
	go func() {
		kmsg, err := os.Open("/dev/kmsg")
		if err != nil {
			return
		}
		defer kmsg.Close()
		b := make([]byte, 8192) // each read is one record (Documentation/ABI/testing/dev-kmsg)
		for {
			n, err := kmsg.Read(b)
			if err != nil {
				return
			}
			if head, text, ok := bytes.Cut(b[:n], []byte(";")); ok {
				text, _, _ = bytes.Cut(text, []byte("\n"))
				fmt.Fprintf(w, "[%s] %s\n", kernelTime(head), text)
			}
		}
	}()
}

// kernelTime is the time of a record, in seconds since the kernel's boot.
func kernelTime(head []byte) string {
	fields := strings.Split(string(head), ",")
	if len(fields) < 3 {
		return "?"
	}
	us := "000000" + fields[2]
	return strings.TrimLeft(us[:len(us)-6], "0") + "." + us[len(us)-6:]
}
