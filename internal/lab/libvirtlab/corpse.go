package libvirtlab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// corpseXML is of a domain that never runs: its memory is loaded with what a crash left. Firmware
// goes over a piece of it below 1 MiB, which no kernel uses as memory.
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

// Corpse starts a transient domain, paused, that has what a crash left: its memory, in a RAM file,
// and its disks, raw images. Libvirt's user for QEMU may read all of them.
func (h *Host) Corpse(name string, memory Memory, ram string, disks []string) {
	h.t.Helper()
	st, err := os.Stat(ram)
	if err != nil {
		h.t.Fatal(err)
	}
	own := filepath.Join(h.Dir, name+".ram")
	h.here("cp", "--sparse=always", ram, own)
	h.here("chmod", "644", own)
	var devices strings.Builder
	for i, path := range disks {
		fmt.Fprintf(&devices, "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vd%c'/></disk>", path, 'a'+i)
	}
	xml := filepath.Join(h.Dir, name+".xml")
	if err := os.WriteFile(xml, fmt.Appendf(nil, corpseXML, name, st.Size(), memory, devices.String(), own), 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.Virsh("create", xml, "--paused")
}
