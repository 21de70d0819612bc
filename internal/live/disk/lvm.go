package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"strings"
)

// Unusable is a part of LVM that no file system can be read from, or written to, from here.
type Unusable struct {
	Where       // a logical volume, or where a physical volume is
	Err   error // why
}

func (u Unusable) Error() string { return fmt.Sprintf("%s: %v", u.Name(), u.Err) }

func (u Unusable) Unwrap() error { return u.Err }

// physical is a physical volume of LVM.
type physical struct {
	uuid  string  // as LVM's label has it, without hyphens
	at    Stretch // of the disk
	group string  // name of its volume group; empty if it has none, or if this volume does not say
	text  section // the group, as this physical volume describes it
}

// errNoLabel says that there is no label of LVM.
var errNoLabel = errors.New("no physical volume of LVM")

// LVM's label and metadata area, in bytes (lib/label/label.h, lib/format_text/layout.h in lvm2).
const (
	labelSectors = 4 // the label is in one of the first sectors
	labelMagic   = "LABELONE"
	labelType    = "LVM2 001"
	areaMagic    = " LVM2 x[5A%r0N*>"
	areaHeader   = 512 // the text follows it, in a ring
	maxLocations = 64  // of data and metadata areas
	lvmCRC       = 0xf597a6cf
	ignored      = 1 // RAW_LOCN_IGNORED
	uuidLen      = 32
)

// crc is LVM's checksum (lib/misc/crc.c): CRC-32 with a start of its own, and without the complements.
func crc(b []byte) uint32 { return ^crc32.Update(^uint32(lvmCRC), crc32.IEEETable, b) }

// readPhysical reads the label and the metadata of a physical volume. It fails with errNoLabel if it is none.
func readPhysical(r io.ReaderAt, at Stretch) (physical, error) {
	p := physical{at: at}
	if at.Len < labelSectors*sector {
		return p, errNoLabel
	}
	head := make([]byte, labelSectors*sector)
	if _, err := r.ReadAt(head, at.Off); err != nil {
		return p, fmt.Errorf("read label of LVM: %w", err)
	}
	le := binary.LittleEndian
	for n := range labelSectors {
		b := head[n*sector:][:sector]
		if string(b[:8]) != labelMagic || string(b[24:32]) != labelType || le.Uint64(b[8:]) != uint64(n) {
			continue
		}
		offset := le.Uint32(b[20:])
		if crc(b[20:]) != le.Uint32(b[16:]) || offset < 32 || offset > sector-uuidLen-8 {
			return p, errors.New("the label of LVM is damaged")
		}
		header := b[offset:]
		p.uuid = string(header[:uuidLen])
		areas, err := metadataAreas(header[uuidLen+8:])
		if err != nil {
			return p, err
		}
		return p, p.readText(r, areas)
	}
	return p, errNoLabel
}

// metadataAreas reads the two lists that follow the UUID and the size in a physical volume's header, and returns the
// second one.
func metadataAreas(b []byte) ([]Stretch, error) {
	var lists [2][]Stretch
	for i := range lists {
		for {
			if len(b) < 16 || len(lists[i]) == maxLocations {
				return nil, errors.New("the label of LVM is damaged: a list has no end")
			}
			off, n := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
			b = b[16:]
			if off == 0 {
				break
			}
			lists[i] = append(lists[i], Stretch{int64(off), int64(n)})
		}
	}
	return lists[1], nil
}

// readText reads the newest of the descriptions of the volume group in the metadata areas. There may be none.
func (p *physical) readText(r io.ReaderAt, areas []Stretch) error {
	var errs []error
	newest := int64(-1)
	for _, a := range areas {
		text, err := p.areaText(r, a)
		var group string
		var s section
		var number int64
		if err == nil && text != "" {
			group, s, number, err = parseGroup(text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("metadata of LVM: %w", err))
		} else if text != "" && number > newest {
			p.group, p.text, newest = group, s, number
		}
	}
	if newest >= 0 {
		return nil
	}
	return errors.Join(errs...)
}

// areaText returns the text in a metadata area, or nothing if it has none, or is not in use.
func (p *physical) areaText(r io.ReaderAt, a Stretch) (string, error) {
	if a.Off < 0 || a.Len <= areaHeader || a.Off > p.at.Len-a.Len {
		return "", fmt.Errorf("an area of %d bytes at %d of a physical volume of %d", a.Len, a.Off, p.at.Len)
	}
	h := make([]byte, areaHeader)
	if _, err := r.ReadAt(h, p.at.Off+a.Off); err != nil {
		return "", err
	}
	le := binary.LittleEndian
	if string(h[4:20]) != areaMagic || le.Uint32(h[20:]) != 1 || le.Uint64(h[24:]) != uint64(a.Off) || crc(h[4:]) != le.Uint32(h) {
		return "", errors.New("the header of an area is damaged")
	}
	off, n, sum, flags := int64(le.Uint64(h[40:])), int64(le.Uint64(h[48:])), le.Uint32(h[56:]), le.Uint32(h[60:])
	if off == 0 || flags&ignored != 0 {
		return "", nil
	}
	if off < areaHeader || off >= a.Len || n <= 0 || n > min(maxText, a.Len-areaHeader) {
		return "", fmt.Errorf("a text of %d bytes at %d of an area of %d", n, off, a.Len)
	}
	b := make([]byte, n)
	first := b[:min(n, a.Len-off)]
	rest := b[len(first):] // what did not fit is behind the header
	_, err := r.ReadAt(first, p.at.Off+a.Off+off)
	if err == nil {
		_, err = r.ReadAt(rest, p.at.Off+a.Off+areaHeader)
	}
	if err != nil {
		return "", err
	}
	if crc(b) != sum {
		return "", errors.New("the checksum of the text is wrong")
	}
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text), nil
}

// parseGroup returns the volume group that a text describes: its name, what it has, and the number of the description.
func parseGroup(text string) (name string, group section, number int64, err error) {
	all, err := parseText(text)
	if err != nil {
		return "", nil, 0, err
	}
	for key, v := range all {
		s, ok := v.(section)
		if !ok {
			continue
		}
		if group != nil {
			return "", nil, 0, errors.New("two volume groups in one text")
		}
		name, group = key, s
	}
	number, err = group.number("seqno")
	return name, group, number, err
}

// volumes returns the logical volumes in those parts of a disk that are physical volumes, and what of LVM there is besides.
func volumes(r io.ReaderAt, parts []Area) (all []Area, unusable []Unusable) {
	var here []physical
	newest := make(map[string]physical) // by the group's id
	for _, a := range parts {
		p, err := readPhysical(r, a.At[0])
		if errors.Is(err, errNoLabel) {
			continue
		}
		if err != nil {
			unusable = append(unusable, Unusable{a.Where, err})
			continue
		}
		here = append(here, p)
		if p.text == nil {
			continue
		}
		id, _ := p.text["id"].(string)
		was, known := newest[id]
		if !known || p.text["seqno"].(int64) > was.text["seqno"].(int64) {
			newest[id] = p
		}
	}
	for _, id := range slices.Sorted(maps.Keys(newest)) {
		found, not := (&group{name: newest[id].group, text: newest[id].text}).volumes(here)
		all, unusable = append(all, found...), append(unusable, not...)
	}
	return all, unusable
}

// group is a volume group.
type group struct {
	name    string
	text    section
	extent  int64              // bytes
	members map[string]extents // by the names that the text gives them
}

// extents are those of a physical volume.
type extents struct {
	at    int64 // where they begin on the disk, in bytes
	count int64 // how many there are
}

// volumes returns the group's logical volumes. here are the physical volumes on the disk.
func (g *group) volumes(here []physical) (all []Area, unusable []Unusable) {
	lvs := g.text.section("logical_volumes")
	whole := g.open(here)
	for _, name := range slices.Sorted(maps.Keys(lvs)) {
		lv := lvs.section(name)
		if !lv.has("status", "VISIBLE") {
			continue
		}
		a, err := Area{Where: Where{Volume: g.name + "/" + name}}, whole
		if err == nil {
			err = g.plain(name, lv)
		}
		if err == nil {
			a.At, err = g.stretches(lv)
		}
		if err != nil {
			unusable = append(unusable, Unusable{a.Where, err})
			continue
		}
		all = append(all, a)
	}
	if err := separate(all); err != nil {
		for _, a := range all {
			unusable = append(unusable, Unusable{a.Where, err})
		}
		return nil, unusable
	}
	return all, unusable
}

// open reads what all volumes of the group have in common. It fails if somebody else may be using the group. Physical
// volumes on other disks are left out. What this disk says of those on it is up to date: LVM changes the description on
// all physical volumes, and marks one that it could not reach, on which it activates nothing then.
func (g *group) open(here []physical) error {
	extent, err := g.text.number("extent_size")
	switch {
	case err != nil:
		return err
	case extent == 0 || extent > 1<<32:
		return fmt.Errorf("extents of %d sectors", extent)
	case g.text["format"] != "lvm2":
		return fmt.Errorf("the volume group's format is %v", g.text["format"])
	case g.text.has("status", "EXPORTED"):
		return errors.New("the volume group is exported")
	case g.text.has("status", "CLUSTERED"), g.text["lock_type"] != nil && g.text["lock_type"] != "none":
		return errors.New("the volume group is shared with other machines")
	}
	g.extent = extent * sector
	g.members = make(map[string]extents)
	pvs := g.text.section("physical_volumes")
	for name := range pvs {
		pv := pvs.section(name)
		id, _ := pv["id"].(string)
		i := slices.IndexFunc(here, func(p physical) bool { return p.uuid == strings.ReplaceAll(id, "-", "") })
		if i < 0 {
			continue
		}
		if pv.has("flags", "MISSING") {
			return fmt.Errorf("volume group %s has been without this disk, which may be out of date since (vgextend --restoremissing)", g.name)
		}
		start, err := pv.number("pe_start")
		count, err2 := pv.number("pe_count")
		if err = errors.Join(err, err2); err != nil {
			return err
		}
		p := here[i]
		if start > p.at.Len/sector || count > (p.at.Len-start*sector)/g.extent {
			return fmt.Errorf("physical volume %s has %d bytes, but is said to have %d extents of %d from sector %d on", name, p.at.Len, count, g.extent, start)
		}
		g.members[name] = extents{p.at.Off + start*sector, count}
	}
	return nil
}

// plain checks that a volume is not moved just now, and that no other volume consists of it, or is a snapshot of it.
func (g *group) plain(name string, lv section) error {
	status, _ := lv["status"].([]any)
	for _, s := range status {
		if s != "READ" && s != "WRITE" && s != "VISIBLE" && s != "FIXED_MINOR" {
			return fmt.Errorf("its status is %v", s)
		}
	}
	lvs := g.text.section("logical_volumes")
	for _, other := range slices.Sorted(maps.Keys(lvs)) {
		if other == name {
			continue
		}
		if g.consists(lvs.section(other), name) {
			return fmt.Errorf("logical volume %s depends on it", other)
		}
	}
	return nil
}

// consists reports whether a segment of a volume names another volume: as one of its areas, as its pool, as its origin.
func (g *group) consists(lv section, other string) bool {
	pvs := g.text.section("physical_volumes")
	for _, v := range lv {
		segment, _ := v.(section)
		for key, v := range segment {
			if key == "type" || key == "tags" {
				continue
			}
			if v == other {
				return true
			}
			areas, _ := v.([]any)
			if _, physical := pvs[other]; !physical && slices.Contains(areas, any(other)) { // LVM looks for a physical volume first
				return true
			}
		}
	}
	return false
}

// stretches returns where a linear volume is on the disk.
func (g *group) stretches(lv section) (at []Stretch, err error) {
	n, err := lv.number("segment_count")
	if err != nil {
		return nil, err
	}
	if n == 0 || n > maxValues {
		return nil, fmt.Errorf("it has %d segments", n)
	}
	next := int64(0)
	for i := range n {
		s := lv.section(fmt.Sprintf("segment%d", i+1))
		start, err1 := s.number("start_extent")
		count, err2 := s.number("extent_count")
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		stripes, _ := s["stripes"].([]any)
		if s["type"] != "striped" || len(stripes) != 2 {
			return nil, fmt.Errorf("it is not linear: a segment is of type %v, with %d stripes", s["type"], len(stripes)/2)
		}
		name, _ := stripes[0].(string)
		from, _ := stripes[1].(int64)
		on, ok := g.members[name]
		if _, elsewhere := g.text.section("physical_volumes")[name]; elsewhere && !ok {
			return nil, fmt.Errorf("not all of it is on this disk: segment %d of %d is on another", i+1, n)
		}
		if start != next || count == 0 || from < 0 || count > on.count || from > on.count-count {
			return nil, fmt.Errorf("segment %d makes no sense: %d extents from %d on, at %d of %q", i+1, count, start, from, name)
		}
		next += count
		off := on.at + from*g.extent
		if last := len(at) - 1; last >= 0 && at[last].Off+at[last].Len == off {
			at[last].Len += count * g.extent
			continue
		}
		at = append(at, Stretch{off, count * g.extent})
	}
	return at, nil
}

// separate checks that no two areas have a byte in common, and none has one twice.
func separate(areas []Area) error {
	var all []Stretch
	for _, a := range areas {
		all = append(all, a.At...)
	}
	slices.SortFunc(all, func(a, b Stretch) int { return int(min(1, max(-1, a.Off-b.Off))) })
	for i := 1; i < len(all); i++ {
		if all[i-1].Off+all[i-1].Len > all[i].Off {
			return fmt.Errorf("byte %d of the disk is given away twice", all[i].Off)
		}
	}
	return nil
}
