package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
)

// fault is something that a kernel or what runs on it may come to, made by a shell in the
// guest.
type fault struct {
	name  string
	shell string // ends at once
	cause string // of the verdict
	full  bool   // only make test-full makes it
}

// unthrottled lets real-time threads have all of a CPU.
const unthrottled = "echo -1 > /proc/sys/kernel/sched_rt_runtime_us; "

var faults = []fault{
	{name: "a panic whose message is lost", cause: "panic state",
		shell: "for d in /sys/bus/pci/drivers/pvpanic-pci/0*; do echo ${d##*/} > /sys/bus/pci/drivers/pvpanic-pci/unbind; done; (sleep 1; echo c > /proc/sysrq-trigger) &"},
	// Without its bus mastering, which is bit 2 of the PCI command register, the disk takes
	// requests and answers none.
	{name: "a disk that does not answer", cause: "stuck disk",
		shell: `for s in /sys/block/*/serial; do if [ "$(cat $s)" = data ]; then d=$(readlink -f ${s%/*}/device/..); fi; done; printf '\003\004' | busybox dd of=$d/config bs=1 seek=4 conv=notrunc 2> /dev/null`},
	{name: "a service that keeps ending", cause: "degraded", shell: "touch /tmp/fail"},
	{name: "one CPU that runs nothing else", cause: "stuck CPU", full: true,
		shell: unthrottled + "busybox taskset 2 chrt -f 99 sh -c 'while :; do :; done' &"},
	{name: "no time for ordinary threads", cause: "stuck scheduler", full: true,
		shell: unthrottled + "(sleep 1; for c in 1 2; do busybox taskset $c chrt -f 40 sh -c 'while :; do :; done' & done) > /dev/null 2>&1 &"},
	{name: "a panic", cause: "dying message", full: true, shell: "(sleep 1; echo c > /proc/sysrq-trigger) &"},
}

// TestFaults: each is found by what it ought to be, one after the other in one pair, and
// nothing is lost.
func TestFaults(t *testing.T) {
	services := again + `  - {name: fails, command: [sh, -c, "while [ ! -e /tmp/fail ]; do sleep 1; done; exit 1"]}
`
	s := stand(t, marker, services, "kernel:", "vcpus: 2, kernel:",
		"services:", "heartbeat: {cpu: 5s, scheduler: 5s, disk: 5s}\ntakeover: {degraded: takeover}\nservices:")
	_, modules, err := dirs.Kernel("")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := understudy(t, "initramfs", "-o", filepath.Join(filepath.Dir(s.file), "guest.cpio"), "--modules", modules, "--add", "/usr/bin/chrt"); err != nil {
		t.Fatal(err)
	}
	s.up()
	sides, n := [2]string{"left", "right"}, 0
	for _, f := range faults {
		if f.full && !tier.IsFull() {
			continue
		}
		active := sides[n%2]
		n++
		s.shell(active, fmt.Sprintf("while [ ! -e /srv/done-%d ]; do sleep 1; done", n))
		s.shell(active, f.shell)
		await(t, "takeover after "+f.name, programLimit, func() bool { return s.status().Takeovers == n })
		st := s.state("protected")
		if st.Active != sides[n%2] || st.Takeover == nil || !strings.HasPrefix(st.Takeover.Verdict, f.cause) {
			t.Fatalf("%s: %+v, last takeover %+v", f.name, st, st.Takeover)
		}
		t.Logf("%s: %s", f.name, st.Takeover.Verdict)
		if len(st.Takeover.Refused) > 0 {
			t.Errorf("%s: refused: %+v", f.name, st.Takeover.Refused)
		}
	}
	s.shell(sides[n%2], fmt.Sprintf("while [ ! -e /srv/done-%d ]; do sleep 1; done", n+1))
	if _, err := understudy(t, "down"); err != nil {
		t.Fatal(err)
	}
	s.sound()
	for i := range n + 1 {
		if got := s.read(fmt.Sprintf("/file-%d", i+1)); got != againFile(i+1) {
			t.Errorf("file %d has %d bytes, or other ones than the %d that were written", i+1, len(got), len(againFile(i+1)))
		}
	}
}

// TestReadOnly: a file system that finds itself damaged and becomes read-only is told.
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
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
}
