package metal

import (
	"strings"
	"testing"
)

// TestReached: a function that writes to memory, where the understudy finds no host bridge, cannot be
// fenced.
func TestReached(t *testing.T) {
	const none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
	for _, c := range []struct{ name, at, resource, wrong string }{
		{"0000:00:1f.2", "pci0000:00/0000:00:1f.2", "", ""},
		{"0000:7f:00.0", "pci0000:00/0000:00:01.0/0000:7f:00.0", "", ""},
		{"0000:85:00.0", "pci0000:80/0000:80:01.0/0000:85:00.0", "", ""},
		{"0000:ff:0b.1", "pci0000:ff/0000:ff:0b.1", none + none, ""}, // a Xeon's own
		{"0000:ff:0b.1", "pci0000:ff/0000:ff:0b.1", none + "0x00000000f0000000 0x00000000f0000fff 0x0000000000040200\n", "no memory in /proc/iomem"},
		{"0000:ff:0b.1", "pci0000:ff/0000:ff:0b.1", "", "no memory in /proc/iomem"},
		{"0001:00:00.0", "pci0001:00/0001:00:00.0", "", "no memory in /proc/iomem"},
		{"0000:90:00.0", "pci0000:00/0000:00:01.0/0000:90:00.0", "", "buses 00 to 7f"},
		{"10000:e1:00.0", "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e1:00.0", "", "VMD"},
		{"0000:00:02.0", "platform/0000:00:02.0", "", "no bus of a host bridge"},
	} {
		files := root(map[string]string{"proc/iomem": strings.Replace(iomemReserved, "380000000-b7fffffff : PCI Bus 0000:00", "380000000-b7fffffff : PCI Bus 0000:80", 1)})
		files["sys/bus/pci/devices/"+c.name] = link("../../../devices/" + c.at)
		if c.resource != "" {
			files["sys/devices/"+c.at+"/resource"] = file(c.resource)
		}
		var found Finding
		for _, f := range Check(files, fakeKernel{}) {
			if f.What == "PCI" {
				found = f
			}
		}
		if found.Fit != (c.wrong == "") || !strings.Contains(found.Detail, c.wrong) || found.Detail == "" {
			t.Errorf("%s: %+v", c.at, found)
		}
	}
	// Configuration space in two pieces, and a bridge with buses in both.
	files := root(map[string]string{acpiDir + "MCFG": string(firmwareMCFG(Segment{Base: 0xb0000000, LastBus: 0x3f}, Segment{Base: 0xc0000000, FirstBus: 0x40, LastBus: 0xff}))})
	files["sys/bus/pci/devices/0000:45:00.0"] = link("../../../devices/pci0000:00/0000:00:01.0/0000:45:00.0")
	m, err := Look(files)
	if err != nil {
		t.Fatal(err)
	}
	bridges, err := m.bridges()
	if err != nil {
		t.Fatal(err)
	}
	if err := reached(files, "0000:45:00.0", bridges); err == nil || !strings.Contains(err.Error(), "buses 00 to 3f") {
		t.Error(err)
	}
}
