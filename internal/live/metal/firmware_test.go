package metal

import (
	"slices"
	"testing"
)

// madtOf is a MADT with those entries, and the local APIC at 0.
func madtOf(b ...byte) []byte { return finish(append(newTable("APIC", 4, make([]byte, 8)), b...)) }

func TestFirmware(t *testing.T) {
	p, err := ParseMADT(firmwareMADT(0, 2, 4, 6))
	if err != nil || !slices.Equal(p.IDs, []uint32{0, 2, 4, 6}) || p.APIC != 0xfee00000 {
		t.Errorf("%+v, %v", p, err)
	}
	// CPUs that are listed in both forms, and entries that are no CPUs.
	both := append(clone(firmwareMADT(0, 2, 255)), madtOf(9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)[acpiHeader+8:]...)
	both = append(both, madtOf(9, 16, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0, 0, 0, 0, 0)[acpiHeader+8:]...)
	if p, err := ParseMADT(finish(both)); err != nil || !slices.Equal(p.IDs, []uint32{0, 2}) {
		t.Errorf("%+v, %v", p, err)
	}
	want := []Segment{{Base: 0xb0000000, LastBus: 255}, {Base: 0xc0000000, Group: 1, FirstBus: 3, LastBus: 4}}
	s, err := ParseMCFG(firmwareMCFG(want...))
	if err != nil || !slices.Equal(s, want) {
		t.Errorf("%+v, %v", s, err)
	}
	reset := Reset{Register: [12]byte{1, 8, 0, 1, 0xf9, 0x0c}, Value: 0x0f}
	if r, err := ParseFADT(fadt(0x1000, reset)); err != nil || r != reset {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := ParseFADT(fadt(0x1000, Reset{})); err != nil || r != (Reset{}) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFirmwareRefused(t *testing.T) {
	wrong := clone(firmwareMADT(0, 1))
	wrong[40]++ // its checksum
	for name, b := range map[string][]byte{
		"nothing":            nil,
		"another table":      firmwareMCFG(Segment{Base: 1 << 20}),
		"checksum":           wrong,
		"cut short":          firmwareMADT(0, 1)[:40],
		"no CPU":             firmwareMADT(),
		"twice":              firmwareMADT(0, 1, 1),
		"number 255 alone":   firmwareMADT(255),
		"an entry of no len": madtOf(0, 0),
		"an entry too long":  madtOf(0, 200, 0, 0),
		"x2APIC number":      madtOf(9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0),
		"no APIC":            madtOf(0, 8, 0, 0, 1, 0, 0, 0),
	} {
		if p, err := ParseMADT(b); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
	for name, b := range map[string][]byte{
		"none": firmwareMCFG(), "crooked": firmwareMCFG(Segment{Base: 1<<20 + 4096}), "backwards": firmwareMCFG(Segment{Base: 1 << 20, FirstBus: 2, LastBus: 1}),
	} {
		if s, err := ParseMCFG(b); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func FuzzFirmware(f *testing.F) {
	f.Add(firmwareMADT(0, 2))
	f.Add(firmwareMCFG(Segment{Base: 0xb0000000, LastBus: 255}))
	f.Add(fadt(0x1000, Reset{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= acpiHeader { // as if its checksum were right
			b = clone(b)
			if n := int(b[4]) | int(b[5])<<8; n >= acpiHeader && n <= len(b) && b[6] == 0 && b[7] == 0 {
				b[9] -= sum(b[:n])
			}
		}
		if p, err := ParseMADT(b); err == nil {
			for _, id := range p.IDs {
				if id > maxAPIC {
					t.Errorf("APIC number %d", id)
				}
			}
			if len(p.IDs) == 0 {
				t.Error("no CPU")
			}
		}
		if s, err := ParseMCFG(b); err == nil && len(s) == 0 {
			t.Error("no segment")
		}
		_, _ = ParseFADT(b)
	})
}
