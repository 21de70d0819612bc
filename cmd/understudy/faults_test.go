package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/fault"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
)

// kernelFault is something that may go wrong in a kernel, or in what runs on it, caused by a
// shell in the guest.
type kernelFault struct {
	name  string
	shell string        // the shell ends at once
	cause string        // of the verdict: one of these, separated by |
	full  bool          // not on the default kernel
	delay time.Duration // from the end of the shell's line to the fault
}

// unthrottled lets real-time threads have all of a CPU, also from 6.12 on, where a server of
// the fair class has a part of it (kernel/sched/debug.c, fair_server).
const unthrottled = "echo -1 > /proc/sys/kernel/sched_rt_runtime_us; busybox mkdir -p /tmp/debug; busybox mount -t debugfs none /tmp/debug; " +
	"for f in /tmp/debug/sched/fair_server/cpu*/runtime; do if [ -e $f ]; then echo 0 > $f; fi; done; "

var faults = []kernelFault{
	{name: "a panic whose message is lost", cause: "panic state", delay: time.Second,
		shell: "for d in /sys/bus/pci/drivers/pvpanic-pci/0*; do echo ${d##*/} > /sys/bus/pci/drivers/pvpanic-pci/unbind; done; (sleep 1; echo c > /proc/sysrq-trigger) &"},
	// Without its bus mastering, which is bit 2 of the PCI command register, the disk takes
	// requests and answers none.
	{name: "a disk that does not answer", cause: "stuck disk",
		shell: `for s in /sys/block/*/serial; do if [ "$(cat $s)" = data ]; then d=$(readlink -f ${s%/*}/device/..); fi; done; printf '\003\004' | busybox dd of=$d/config bs=1 seek=4 conv=notrunc 2> /dev/null`},
	{name: "a service that keeps ending", cause: "degraded", full: true, shell: "touch /tmp/fail"},
	{name: "one CPU that runs nothing else", cause: hung, full: true,
		shell: unthrottled + "busybox taskset 2 chrt -f 99 sh -c 'while :; do :; done' &"},
	{name: "no time for ordinary threads", cause: "stuck scheduler|stuck disk", full: true, delay: time.Second,
		shell: unthrottled + "(sleep 1; for c in 1 2; do busybox taskset $c chrt -f 40 sh -c 'while :; do :; done' & done) > /dev/null 2>&1 &"},
	{name: "a panic", cause: "dying message|panic state", full: true, delay: time.Second, shell: "(sleep 1; echo c > /proc/sysrq-trigger) &"},
}

// hung lists the signs by which the hang of a CPU may be found: the thread that beats may wait for a timer
// of that CPU, or not; and a disk's interrupt may be on that CPU, or an ordinary thread may run there.
const hung = "heartbeat|stuck CPU|stuck scheduler|stuck disk"

// ways are the faults that the module causes (internal/lab/fault).
var ways = map[string]string{
	"panic": "dying message|panic state", "oops": "dying message|panic state", "oops-irq": "dying message|panic state", "bug": "dying message|panic state", "stack": "dying message|panic state",
	"hang-all": "heartbeat", "hang-one": hung, "hang-loop": hung, "hang-lock": hung,
}

// TestFaults causes one fault after the other in one pair, and checks that each is found by
// the right sign, and that nothing is lost.
func TestFaults(t *testing.T) {
	t.Run("default", func(t *testing.T) {
		vm(t)
		var some []kernelFault
		for _, f := range faults {
			if !f.full {
				some = append(some, f)
			}
		}
		testFaults(t, "", some)
	})
	for _, kernel := range []string{"6.1-generic", "6.12-cloud"} {
		t.Run(kernel, func(t *testing.T) {
			tier.Full(t, "faults of kernel "+kernel)
			vm(t)
			module, dir, err := fault.Module(kernel)
			if errors.As(err, new(fault.Unmet)) {
				tier.Lacks(t, err)
			}
			if err != nil {
				t.Fatal(err)
			}
			all := faults
			for _, way := range fault.Ways {
				all = append(all[:len(all):len(all)], kernelFault{name: "module: " + way, shell: "insmod " + module + " way=" + way, cause: ways[way], delay: time.Second})
			}
			testFaults(t, dir, all, "--add", module)
		})
	}
}

// testFaults causes faults in a kernel, which is in a directory (dirs.Kernel). The pair has
// two disks with different features, one mounted in the other.
func testFaults(t *testing.T, kernel string, faults []kernelFault, add ...string) {
	inner := filepath.Join(t.TempDir(), "inner.img")
	if err := os.WriteFile(inner, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(inner, 64<<20); err != nil {
		t.Fatal(err)
	}
	mkfs(t, "-b", "1024", "-O", "quota,inline_data,orphan_file", inner)
	services := strings.ReplaceAll(again, "touch /srv/done", "seq $n 100000 > /srv/in/file-$n; touch /srv/done") + `  - {name: fails, command: [sh, -c, "while [ ! -e /tmp/fail ]; do sleep 1; done; exit 1"]}
`
	image, modules, err := dirs.Kernel(kernel)
	if err != nil {
		t.Fatal(err)
	}
	usual, _, err := dirs.Kernel("")
	if err != nil {
		t.Fatal(err)
	}
	s := stand(t, marker, services, "kernel: "+usual, "vcpus: 2, kernel: "+image,
		"services:", "  - {name: inner, image: "+inner+", mount: /srv/in, options: noatime}\nheartbeat: {cpu: 5s, scheduler: 5s, disk: 5s}\ntakeover: {degraded: takeover}\nservices:")
	args := append([]string{"initramfs", "-o", filepath.Join(filepath.Dir(s.file), "guest.cpio"), "--modules", modules, "--add", "/usr/bin/chrt"}, add...)
	if _, err := understudy(t, args...); err != nil {
		t.Fatal(err)
	}
	s.up()
	sides, n := [2]string{"left", "right"}, 0
	for _, f := range faults {
		active := sides[n%2]
		n++
		s.wrote(active, n)
		if tier.IsFull() {
			s.calm()
		}
		s.shell(active, f.shell)
		made := time.Now().Add(f.delay)
		await(t, "takeover after "+f.name, programLimit, func() bool { return s.status().Takeovers >= n })
		st := s.state("protected")
		cause, _, _ := strings.Cut(st.Takeover.Verdict, ":")
		if st.Active != sides[n%2] {
			t.Fatalf("%s: %+v, last takeover %+v", f.name, st, st.Takeover)
		}
		if !slices.Contains(strings.Split(f.cause, "|"), cause) {
			t.Errorf("%s: found by %s, not by %s: %+v", f.name, cause, f.cause, st.Takeover)
		}
		row(t, "Faults", st.Kernel, f.name, st.Takeover.Verdict, found(st.Takeover, cause, made), len(st.Takeover.Refused))
		if len(st.Takeover.Refused) > 0 {
			t.Errorf("%s: refused: %+v", f.name, st.Takeover.Refused)
		}
	}
	s.wrote(sides[n%2], n+1)
	if _, err := understudy(t, "down"); err != nil {
		t.Fatal(err)
	}
	for _, s.image = range []string{s.image, inner} {
		s.sound()
		s.exact(n + 1)
	}
}

// found returns how long it took to find a fault: from the last beat if the beat stood
// still, otherwise from when the fault was caused, as far as the test knows that.
func found(t *lastTakeover, cause string, made time.Time) time.Duration {
	if strings.HasPrefix(cause, "stuck") || cause == "degraded" {
		return t.At.Sub(made).Round(time.Second / 10)
	}
	return time.Duration(t.Steps[0].End) * time.Millisecond
}

// TestReadOnly checks that a file system that finds itself damaged and becomes read-only is reported.
func TestReadOnly(t *testing.T) {
	tier.Full(t, "a file system that becomes read-only")
	s := stand(t, "mount: /srv", "mount: /srv, options: errors=remount-ro")
	s.up()
	s.shell("left", `for s in /sys/block/*/serial; do if [ "$(cat $s)" = data ]; then d=${s%/serial}; fi; done; sync; echo 1 > /sys/fs/ext4/${d##*/}/trigger_fs_error`)
	await(t, "trouble", programLimit, func() bool {
		return strings.Contains(strings.Join(s.status().Troubles, " "), "takes no writes any more")
	})
	if st := pairStatus(t); st.State != "protected" || st.Active != "left" {
		t.Errorf("status %+v", st)
	}
	// What was written counts as lost, though the kernel's sync succeeds.
	if out, err := understudy(t, "down"); err == nil || !strings.Contains(out+err.Error(), "found itself damaged") {
		t.Errorf("down: %v: %s", err, out)
	}
	if _, err := understudy(t, "down", "--force", "--discard"); err != nil {
		t.Error(err)
	}
}
