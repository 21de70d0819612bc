package disk

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/lvmdisk"
)

// lvmSize is the size of the disks of these tests, in bytes.
const lvmSize = 1 << 20

// TestVolumes: what is linear is found, and what is not is said to be so, with its name.
func TestVolumes(t *testing.T) {
	at := func(extent, count int64) Stretch {
		return Stretch{lvmdisk.Start + extent*lvmdisk.Extent, count * lvmdisk.Extent}
	}
	volume, linear := lvmdisk.Volume, lvmdisk.Linear
	visible := lvmdisk.Visible
	other := func(is string) lvmdisk.Segment { return lvmdisk.Segment{Count: 2, Is: is} }
	root := volume("root", visible, linear(1, 2))
	for _, tt := range []struct {
		name, top string
		volumes   []string
		want      []Stretch // of vg0/root
		err       string
	}{
		{"linear", "", []string{root}, []Stretch{at(1, 2)}, ""},
		{"beside another", "", []string{root, volume("swap", visible, linear(3, 2))}, []Stretch{at(1, 2)}, ""},
		{"two segments", "", []string{volume("root", visible, linear(4, 2), linear(0, 1))}, []Stretch{at(4, 2), at(0, 1)}, ""},
		{"two that are one", "", []string{volume("root", visible, linear(1, 2), linear(3, 1))}, []Stretch{at(1, 3)}, ""},
		{"a gap", "", []string{volume("root", visible, linear(1, 2), lvmdisk.Segment{Count: 1, Is: linear(3, 1).Is, Gap: 1})}, nil, "makes no sense"},
		{"beyond the end", "", []string{volume("root", visible, linear(6, 2))}, nil, "makes no sense"},
		{"no segments", "", []string{volume("root", visible)}, nil, "it has 0 segments"},
		{"thin", "", []string{volume("root", visible, other("type = \"thin\"\nthin_pool = \"pool\"\n")), volume("pool", visible, other("type = \"thin-pool\"\n"))}, nil, "not linear: a segment is of type thin"},
		{"striped", "", []string{volume("root", visible, other("type = \"striped\"\nstripes = [\"pv0\", 0, \"pv1\", 0]\n"))}, nil, "with 2 stripes"},
		{"with a snapshot", "", []string{root, volume("snapshot0", `"READ", "WRITE"`, other("type = \"snapshot\"\norigin = \"root\"\ncow_store = \"snap\"\n"))}, nil, "snapshot0 depends on it"},
		{"leg of a mirror", "", []string{root, volume("m", visible, other("type = \"mirror\"\nmirrors = [\"root\", 0, \"other\", 0]\n"))}, nil, "m depends on it"},
		{"named as the host, a type and a tag", "", []string{root, volume("x", visible, other("type = \"root\"\ntags = [\"root\"]\n"))}, []Stretch{at(1, 2)}, ""},
		{"being moved", "", []string{volume("root", `"READ", "WRITE", "VISIBLE", "LOCKED"`, linear(1, 2))}, nil, "LOCKED"},
		{"exported", `status = ["EXPORTED"]`, []string{root}, nil, "exported"},
		{"shared", `lock_type = "sanlock"`, []string{root}, nil, "shared"},
		{"not shared", `lock_type = "none"`, []string{root}, []Stretch{at(1, 2)}, ""},
		{"given away twice", "", []string{root, volume("swap", visible, linear(2, 2))}, nil, "twice"},
		{"hidden", "", []string{volume("root", `"READ", "WRITE"`, linear(1, 2))}, nil, "no logical volume vg0/root, nor any other"},
		{"another name", "", []string{volume("home", visible, linear(1, 2))}, nil, "no logical volume vg0/root; there is vg0/home"},
	} {
		for where, from := range map[string]int{"": lvmdisk.Header, ", text around the end": lvmdisk.Start - lvmdisk.Area - 100} {
			t.Run(tt.name+where, func(t *testing.T) {
				d := make([]byte, lvmSize)
				lvmdisk.Write(d, lvmdisk.UUID, lvmdisk.Group(lvmSize, tt.top, tt.volumes...), from)
				a, err := At(bytes.NewReader(d), lvmSize, Where{Volume: "vg0/root"})
				if tt.err == "" && (err != nil || !slices.Equal(a.At, tt.want)) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
					t.Errorf("%+v, %v; want %v, %q", a, err, tt.want, tt.err)
				}
			})
		}
	}
}

// TestVolumesDamaged: a label or metadata with a wrong checksum is not believed.
func TestVolumesDamaged(t *testing.T) {
	text := lvmdisk.Group(lvmSize, "", lvmdisk.Volume("root", lvmdisk.Visible, lvmdisk.Linear(1, 2)))
	look := func(d []byte) error {
		_, err := At(bytes.NewReader(d), lvmSize, Where{Volume: "vg0/root"})
		return err
	}
	for name, at := range map[string]int{"label": sector + 40, "header": lvmdisk.Area + 45, "text": lvmdisk.Area + lvmdisk.Header + 20} {
		d := make([]byte, lvmSize)
		lvmdisk.Write(d, lvmdisk.UUID, text, lvmdisk.Header)
		if err := look(d); err != nil {
			t.Fatal(err)
		}
		d[at] ^= 1
		if err := look(d); err == nil || !strings.Contains(err.Error(), "damaged") && !strings.Contains(err.Error(), "wrong") {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := make([]byte, lvmSize)
	lvmdisk.Write(d, "another-physical-volume-altogeth", text, lvmdisk.Header)
	if err := look(d); err == nil || !strings.Contains(err.Error(), "is on another") {
		t.Errorf("a group of another physical volume: %v", err)
	}
	d = make([]byte, lvmSize)
	lvmdisk.Write(d, lvmdisk.UUID, "", lvmdisk.Header)
	if err := look(d); err == nil || !strings.Contains(err.Error(), "nor any other") {
		t.Errorf("a physical volume without a group: %v", err)
	}
}

// TestVolumesElsewhere checks that of a group on several disks, the volumes that are wholly on this disk are found, if the
// disk has been with the group all the time.
func TestVolumesElsewhere(t *testing.T) {
	away := func(s lvmdisk.Segment) lvmdisk.Segment {
		s.Is = strings.Replace(s.Is, "pv0", "pv1", 1)
		return s
	}
	v := func(name string, s ...lvmdisk.Segment) string { return lvmdisk.Volume(name, lvmdisk.Visible, s...) }
	text := lvmdisk.Group(lvmSize, "", v("root", lvmdisk.Linear(1, 2)), v("home", away(lvmdisk.Linear(1, 2))), v("both", lvmdisk.Linear(3, 1), away(lvmdisk.Linear(3, 1))))
	group := func(here, there string) string {
		s := strings.Replace(text, "flags = []\n", here, 1)
		return strings.Replace(s, "physical_volumes {\n", fmt.Sprintf("physical_volumes {\npv1 {\nid = %q\n%spe_start = 100\npe_count = 7\n}\n", lvmdisk.Hyphened("a-physical-volume-somewhere-else0"[:32]), there), 1)
	}
	const missing = "flags = [\"MISSING\"]\n"
	for name, c := range map[string]struct {
		text string
		errs map[string]string // by volume; empty: it is found
	}{
		"both here":    {group("", ""), map[string]string{"root": "", "home": "segment 1 of 1 is on another", "both": "segment 2 of 2 is on another"}},
		"one was away": {group("", missing), map[string]string{"root": "", "home": "is on another"}},
		"this was":     {group(missing, ""), map[string]string{"root": "without this disk", "home": "without this disk"}},
	} {
		d := make([]byte, lvmSize)
		lvmdisk.Write(d, lvmdisk.UUID, c.text, lvmdisk.Header)
		for volume, want := range c.errs {
			a, err := At(bytes.NewReader(d), lvmSize, Where{Volume: "vg0/" + volume})
			if want == "" && (err != nil || len(a.At) != 1) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s, %s: %+v, %v", name, volume, a, err)
			}
		}
	}
}

// TestVolumesMoved: a volume's stretches are counted from the beginning of the disk, whatever partition it is in.
func TestVolumesMoved(t *testing.T) {
	const off = 1 << 20
	pv := make([]byte, lvmSize)
	lvmdisk.Write(pv, lvmdisk.UUID, lvmdisk.Group(lvmSize, "", lvmdisk.Volume("root", lvmdisk.Visible, lvmdisk.Linear(1, 2))), lvmdisk.Header)
	d := append(make([]byte, off), pv...)
	entry := d[446:]
	entry[4], entry[8+1], entry[12+1] = 0x8e, off/sector>>8, lvmSize/sector>>8
	d[510], d[511] = 0x55, 0xaa
	areas, unusable, err := Areas(bytes.NewReader(d), int64(len(d)))
	want := []Area{
		{Where{Part: 1}, []Stretch{{off, lvmSize}}},
		{Where{Volume: "vg0/root"}, []Stretch{{off + lvmdisk.Start + lvmdisk.Extent, 2 * lvmdisk.Extent}}},
	}
	if err != nil || len(unusable) > 0 || !slices.EqualFunc(areas, want, func(a, b Area) bool { return a.Where == b.Where && slices.Equal(a.At, b.At) }) {
		t.Errorf("%+v, %v, %v", areas, unusable, err)
	}
}

// TestVolumesOnTwo: a group may have two partitions of the disk, of which one does not describe it, and the newest
// description counts.
func TestVolumesOnTwo(t *testing.T) {
	const off, second = 1 << 20, "secondphysicalvolumeofitsownkind"
	linear := lvmdisk.Linear(1, 2)
	linear.Is = strings.Replace(linear.Is, "pv0", "pv1", 1)
	text := func(seqno, volume string, segments ...lvmdisk.Segment) string {
		s := lvmdisk.Group(lvmSize, "", lvmdisk.Volume(volume, lvmdisk.Visible, segments...))
		s = strings.Replace(s, "seqno = 3", "seqno = "+seqno, 1)
		return strings.Replace(s, "physical_volumes {\n", fmt.Sprintf("physical_volumes {\npv1 {\nid = %q\npe_start = %d\npe_count = 7\n}\n", lvmdisk.Hyphened(second), lvmdisk.Start/sector), 1)
	}
	for _, older := range []string{"", text("2", "old", lvmdisk.Linear(1, 1))} {
		d := make([]byte, 3*off)
		lvmdisk.Write(d[off:2*off], lvmdisk.UUID, older, lvmdisk.Header)
		lvmdisk.Write(d[2*off:], second, text("3", "root", linear, lvmdisk.Linear(0, 1)), lvmdisk.Header)
		for i := range 2 {
			entry := d[446+16*i:]
			entry[4], entry[8+1], entry[12+1] = 0x8e, byte((i+1)*off/sector>>8), lvmSize/sector>>8
		}
		d[510], d[511] = 0x55, 0xaa
		areas, unusable, err := Areas(bytes.NewReader(d), int64(len(d)))
		want := []Stretch{{2*off + lvmdisk.Start + lvmdisk.Extent, 2 * lvmdisk.Extent}, {off + lvmdisk.Start, lvmdisk.Extent}}
		if err != nil || len(unusable) > 0 || len(areas) != 3 || areas[2].Volume != "vg0/root" || !slices.Equal(areas[2].At, want) {
			t.Errorf("%+v, %v, %v", areas, unusable, err)
		}
	}
}

// FuzzVolumes: whatever is on a disk, a volume is within it.
func FuzzVolumes(f *testing.F) {
	f.Add(lvmdisk.Group(lvmSize, "", lvmdisk.Volume("root", lvmdisk.Visible, lvmdisk.Linear(1, 2), lvmdisk.Linear(0, 1))), lvmdisk.Area+100, byte(0))
	f.Add(lvmdisk.Group(lvmSize, `status = ["EXPORTED"]`, lvmdisk.Volume("root", lvmdisk.Visible, lvmdisk.Segment{Count: 1, Is: "type = \"thin\"\n"})), sector+20, byte(7))
	f.Fuzz(func(t *testing.T, text string, at int, b byte) {
		d := make([]byte, lvmSize)
		lvmdisk.Write(d, lvmdisk.UUID, text[:min(len(text), lvmdisk.Start-lvmdisk.Area-lvmdisk.Header-1)], lvmdisk.Header)
		if at >= 0 && at < len(d) {
			d[at] ^= b
		}
		areas, _, err := Areas(bytes.NewReader(d), lvmSize)
		if err != nil && (at < 0 || at >= sector) {
			t.Fatal(err)
		}
		for _, a := range areas {
			for _, s := range a.At {
				if s.Off < 0 || s.Len <= 0 || s.Off > lvmSize-s.Len {
					t.Errorf("%+v", a)
				}
			}
		}
	})
}
