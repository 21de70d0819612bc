package main

import (
	"strings"
	"testing"
)

// TestCrashKernelLoaded checks that the message of a kernel with kdump loaded counts as a
// death. Such a kernel reports through pvpanic only that, before it boots its crash kernel,
// so the partition goes on to run, as a crash kernel would.
func TestCrashKernelLoaded(t *testing.T) {
	s := stand(t, marker, writer)
	s.up()
	s.written()
	// Without its driver, which owns the device's memory until then, anybody may use the device.
	s.shell("left", `cd /sys/bus/pci/drivers/pvpanic-pci; for d in *:*; do echo $d > unbind; at=$(busybox cut -d' ' -f1 ../../devices/$d/resource | busybox head -n1); done`)
	s.shell("left", "(sleep 2; busybox devmem $at 8 2; while :; do sync; done) > /dev/null 2>&1 &")
	if st := awaitTakeover(t); st.Active != "right" || st.Takeover == nil || !strings.Contains(st.Takeover.Verdict, "dying message") {
		t.Errorf("status %+v", st)
	}
	s.shell("right", "while [ $(wc -l < /srv/mark) -lt 2 ]; do sleep 1; done") // otherwise down ends the service before it has written
	if _, err := understudy(t, "down"); err != nil {
		t.Fatal(err)
	}
	s.sound()
	if kept, mark := s.read("/kept"), s.read("/mark"); kept != "precious\n" || mark != "started\nstarted\n" {
		t.Errorf("the files are %q and %q", kept, mark)
	}
}
