package libvirtlab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// corpseXML describes a domain that never runs: its memory is loaded with what a crash
// left. Firmware overwrites a piece of it below 1 MiB, which no kernel uses as memory.
const corpseXML = `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>%s</name>
  <memory unit='b'>%d</memory>
  %s
  <vcpu>1</vcpu>
  <os><type machine='q35'>hvm</type></os>
  <on_crash>preserve</on_crash>
  <devices>%s<memballoon model='none'/><panic model='isa'/></devices>
  <qemu:commandline><qemu:arg value='-device'/><qemu:arg value='loader,file=%s,addr=0,force-raw=on'/></qemu:commandline>
</domain>
`

// Disk is a disk image of a domain.
type Disk struct{ Path, Format string }

// Convert replaces a raw image with one of another format, which it returns.
func (d Disk) Convert(t testing.TB, format string) Disk {
	t.Helper()
	to := Disk{d.Path + "." + format, format}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-O", format, d.Path, to.Path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	if err := os.Remove(d.Path); err != nil {
		t.Fatal(err)
	}
	return to
}

// Corpse starts a transient domain, paused, with what a crash left: its memory, in a RAM
// file, and its disks.
func (h *Host) Corpse(name string, memory Memory, ram string, disks []Disk) {
	h.t.Helper()
	st, err := os.Stat(ram)
	if err != nil {
		h.t.Fatal(err)
	}
	own := filepath.Join(h.Dir, name+".ram")
	h.here("cp", "--sparse=always", ram, own)
	h.here("chmod", "644", own)
	var devices strings.Builder
	for i, d := range disks {
		fmt.Fprintf(&devices, "<disk type='file' device='disk'><driver name='qemu' type='%s'/><source file='%s'/><target dev='vd%c'/></disk>", d.Format, d.Path, 'a'+i)
	}
	xml := filepath.Join(h.Dir, name+".xml")
	if err := os.WriteFile(xml, fmt.Appendf(nil, corpseXML, name, st.Size(), memory, devices.String(), own), 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.Virsh("create", xml, "--paused")
}

// Panic makes a domain's panic device report that its kernel has panicked, as the driver
// in a guest does (QEMU's docs/specs/pvpanic.rst), and waits until libvirt reports it.
func (h *Host) Panic(name string) {
	h.t.Helper()
	h.Virsh("qemu-monitor-command", name, "--hmp", "o /b 0x505 1")
	h.Await(name+" crashed", time.Minute, func() bool { return h.State(name) == "crashed (panicked)" })
}
