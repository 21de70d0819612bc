// Package lvmdisk writes disks with physical volumes of LVM, as tests need them: nothing of LVM is needed for that.
package lvmdisk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
)

// UUID is that of the only physical volume, as its label has it.
const UUID = "abcdefghijklmnopqrstuvwxyz012345"

// Where things are on the physical volume, in bytes (lib/format_text/layout.h in lvm2).
const (
	Area      = 4096      // the metadata area begins
	Start     = 64 << 10  // the extents begin
	Extent    = 128 << 10 // size of an extent
	Header    = 512       // of the metadata area: the text follows, in a ring
	sector    = 512
	areaMagic = " LVM2 x[5A%r0N*>"
)

// Hyphened is a UUID as LVM's text has it.
func Hyphened(id string) string {
	return strings.Join([]string{id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]}, "-")
}

// Before is where the partition begins in what Make makes.
const Before = 1 << 20

// Make makes an image with a partition that is a physical volume with that many extents, for these volumes.
func Make(path string, extents int64, volumes ...string) error {
	size := Start + extents*Extent
	head := make([]byte, Before+Start)
	entry := head[446:]
	entry[4] = 0x8e // Linux LVM
	binary.LittleEndian.PutUint32(entry[8:], Before/sector)
	binary.LittleEndian.PutUint32(entry[12:], uint32(size/sector))
	head[510], head[511] = 0x55, 0xaa
	Write(head[Before:], UUID, Group(size, "", volumes...), Header)
	if err := os.WriteFile(path, head, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, Before+size)
}

// Group describes volume group vg0 on a physical volume of size bytes. top is further lines about the group.
func Group(size int64, top string, volumes ...string) string {
	return fmt.Sprintf("vg0 {\nid = \"VG\"\nseqno = 3\nformat = \"lvm2\" # informational\nextent_size = %d\n%s\nphysical_volumes {\npv0 {\nid = %q\npe_start = %d\npe_count = %d\nflags = []\n}\n}\nlogical_volumes {\n%s}\n}\n"+
		"# Generated\ncontents = \"Text Format Volume Group\"\nversion = 1\ndescription = \"a \\\"quoted\\\" one\"\n",
		Extent/sector, top, Hyphened(UUID), Start/sector, (size-Start)/Extent, strings.Join(volumes, ""))
}

// Visible is the status of an ordinary volume.
const Visible = `"READ", "WRITE", "VISIBLE"`

// Volume describes a volume.
func Volume(name, status string, segments ...Segment) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s {\nid = \"x\"\nstatus = [%s]\ncreation_host = \"root\"\nsegment_count = %d\n", name, status, len(segments))
	next := 0
	for i, s := range segments {
		fmt.Fprintf(&b, "segment%d {\nstart_extent = %d\nextent_count = %d\n%s}\n", i+1, next+s.Gap, s.Count, s.Is)
		next += s.Count
	}
	b.WriteString("}\n")
	return b.String()
}

// Segment is a part of a volume.
type Segment struct {
	Count int    // extents
	Is    string // LVM's text
	Gap   int    // extents that are missing before it
}

// Linear is a segment of count extents, which begins at one of the physical volume.
func Linear(at, count int) Segment {
	return Segment{Count: count, Is: fmt.Sprintf("type = \"striped\"\nstripe_count = 1\nstripes = [\n\"pv0\", %d\n]\n", at)}
}

// Sum is LVM's checksum (lib/misc/crc.c).
func Sum(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }

// Write makes a physical volume with that UUID of disk, with a text that begins at an offset of its metadata area.
func Write(disk []byte, uuid, text string, at int) {
	le := binary.LittleEndian
	label := disk[sector:][:sector]
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)
	le.PutUint32(label[20:], 32)
	copy(label[24:], "LVM2 001")
	copy(label[32:], uuid)
	le.PutUint64(label[64:], uint64(len(disk)))
	le.PutUint64(label[72:], Start)
	le.PutUint64(label[104:], Area)
	le.PutUint64(label[112:], Start-Area)
	le.PutUint32(label[16:], Sum(label[20:]))
	area := disk[Area:Start]
	h := area[:Header]
	copy(h[4:], areaMagic)
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], Area)
	le.PutUint64(h[32:], Start-Area)
	if text != "" {
		text += "\x00"
		le.PutUint64(h[40:], uint64(at))
		le.PutUint64(h[48:], uint64(len(text)))
		le.PutUint32(h[56:], Sum([]byte(text)))
		n := copy(area[at:], text)
		copy(area[Header:], text[n:])
	}
	le.PutUint32(h, Sum(h[4:]))
}
