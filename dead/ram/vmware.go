package ram

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
)

// The state of a VMware machine that was suspended (.vmss) or of which a snapshot was taken
// (.vmsn), as VMware published its layout for crash(8) (vmware_vmss.h; struct cptdumpheader,
// cptgroupdesc, and the tags): a header, groups, and in each group tags with a name, up to
// three indices, and a value or a block. Numbers are little endian. The memory is a block in
// the file, or is in the .vmem file of the same name. The tags of the group "memory" say where
// its parts lie in physical memory.
const (
	vmwareName       = "VMware state file"
	vmwareHeaderSize = 12
	vmwareGroupSize  = 80
	vmwareMaxGroups  = 4096
	vmwareMaxTags    = 1 << 16
	vmwareMaxRegions = 1024

	// Sizes of a tag's value that mean that a block follows.
	vmwareCompressed = 62
	vmwareBlock      = 63
)

// vmwareMagics are those of a state, of a state part of which is elsewhere, and of one that was resumed.
var vmwareMagics = []string{"\xd2\xbe\xd2\xbe", "\xd3\xbe\xd3\xbe", "\xd1\xbe\xd1\xbe"}

// vmwareState is what a state file says about memory.
type vmwareState struct {
	regions       map[uint32]*vmwareRegion
	count         uint64
	memory        bool  // the memory is in the file itself
	start, length int64 // where it is
}

// vmwareRegion is a piece of memory, in pages: its place in physical memory and in the file, and its size.
type vmwareRegion struct{ ppn, page, size uint64 }

func isVMware(head []byte) bool {
	return slices.ContainsFunc(vmwareMagics, func(m string) bool { return bytes.HasPrefix(head, []byte(m)) })
}

// openVMware opens the memory in a state file at a path, or in the .vmem file beside it.
func openVMware(in input, path string) (Memory, error) {
	s, err := readVMware(in)
	if err != nil {
		return nil, err
	}
	if s.memory {
		return s.open(behind{in, s.start}, s.length)
	}
	beside := strings.TrimSuffix(path, filepath.Ext(path)) + ".vmem"
	f, err := os.Open(beside)
	if err != nil {
		return nil, &FormatError{
			Format: vmwareName,
			Reason: "the memory is not in it, and not beside it: " + err.Error(),
			Hint:   "copy the .vmem file of the same name to the same directory",
		}
	}
	m, err := openVmem(f, s)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, in.Close()
}

// stateBeside reads the state file of a .vmem file; nil if there is none.
func stateBeside(path string) (*vmwareState, error) {
	stem, ok := strings.CutSuffix(path, ".vmem")
	if !ok {
		return nil, nil
	}
	for _, ext := range []string{".vmss", ".vmsn"} {
		f, err := os.Open(stem + ext)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		stat, err := f.Stat()
		if err != nil {
			return nil, err
		}
		s, err := readVMware(fileInput{f, stat.Size()})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", stem+ext, err)
		}
		return s, nil
	}
	return nil, nil
}

func openVmem(f *os.File, s *vmwareState) (Memory, error) {
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return s.open(fileInput{f, stat.Size()}, stat.Size())
}

// open arranges the first size bytes of a file. Without regions they are arranged as in a RAM file
// of any machine.
func (s *vmwareState) open(in input, size int64) (Memory, error) {
	if s.count == 0 {
		return openRawOf(in, size, "VMware memory")
	}
	var x extents
	for i := range uint32(s.count) {
		r := s.regions[i]
		switch {
		case r == nil || r.size == 0 || r.ppn+r.size > maxPhys/addr.PageSize || r.page+r.size > maxPhys/addr.PageSize:
			return nil, malformed(vmwareName, "region %d of memory is not plausible", i)
		case int64(r.page+r.size)*addr.PageSize > size:
			return nil, truncated("VMware memory", (r.page+r.size)*addr.PageSize, size)
		}
		start := addr.Phys(r.ppn) * addr.PageSize
		x = append(x, extent{phys: addr.PhysRange{Start: start, End: start + addr.Phys(r.size*addr.PageSize)}, off: int64(r.page * addr.PageSize)})
	}
	if err := x.sort(vmwareName); err != nil {
		return nil, err
	}
	im := image{info: Info{Format: "VMware memory"}}
	im.setMemory(x.ranges(), x.bytes())
	return mapExtents(in, x, im)
}

// readVMware reads what a state file says about memory.
func readVMware(in input) (*vmwareState, error) {
	head := make([]byte, vmwareHeaderSize)
	if err := inside(vmwareName, in, 0, vmwareHeaderSize); err != nil {
		return nil, err
	}
	if _, err := in.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read state header: %w", err)
	}
	groups := binary.LittleEndian.Uint32(head[8:])
	if !isVMware(head) || groups == 0 || groups > vmwareMaxGroups {
		return nil, malformed(vmwareName, "%d groups", groups)
	}
	if err := inside(vmwareName, in, vmwareHeaderSize, uint64(groups)*vmwareGroupSize); err != nil {
		return nil, err
	}
	table := make([]byte, groups*vmwareGroupSize)
	if _, err := in.ReadAt(table, vmwareHeaderSize); err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	for ; len(table) > 0; table = table[vmwareGroupSize:] {
		name, _, _ := bytes.Cut(table[:64], []byte{0})
		if string(name) != "memory" {
			continue
		}
		s := &vmwareState{regions: map[uint32]*vmwareRegion{}}
		return s, s.readTags(in, binary.LittleEndian.Uint64(table[64:]))
	}
	return nil, malformed(vmwareName, "it has no group of memory")
}

func (s *vmwareState) readTags(in input, off uint64) error {
	if err := inside(vmwareName, in, off, 2); err != nil {
		return err
	}
	c := newCursor(in, int64(off))
	le := binary.LittleEndian
	for range vmwareMaxTags {
		tag := le.Uint16(c.take(2))
		if tag == 0 || c.err != nil {
			break
		}
		name := string(c.take(int(tag >> 8)))
		var index [3]uint32
		for i := range tag >> 6 & 3 {
			index[i] = le.Uint32(c.take(4))
		}
		size := int(tag & 0x3f)
		if size == vmwareCompressed || size == vmwareBlock {
			at, err := s.block(c, in, name, size)
			if err != nil {
				return err
			}
			c = newCursor(in, at)
			continue
		}
		var b [8]byte
		copy(b[:], c.take(size))
		if err := s.value(name, index[0], le.Uint64(b[:])); err != nil && c.err == nil {
			return err
		}
	}
	switch {
	case c.err != nil:
		return truncated(vmwareName, uint64(c.at)+1, in.Size())
	case s.count > vmwareMaxRegions:
		return malformed(vmwareName, "%d regions of memory", s.count)
	}
	return nil
}

// block reads the head of a block, and returns where it ends.
func (s *vmwareState) block(c *cursor, in input, name string, kind int) (int64, error) {
	le := binary.LittleEndian
	size, _ := le.Uint64(c.take(8)), le.Uint64(c.take(8)) // in the file, and in memory
	c.skip(int64(le.Uint16(c.take(2))))
	if c.err != nil {
		return 0, truncated(vmwareName, uint64(c.at)+1, in.Size())
	}
	if err := inside(vmwareName, in, uint64(c.at), size); err != nil {
		return 0, err
	}
	if name == "Memory" {
		if kind == vmwareCompressed || s.memory {
			return 0, &FormatError{Format: vmwareName, Reason: "the memory in it is compressed, or in pieces", Hint: "suspend to a .vmem file (mainMem.useNamedFile = TRUE)"}
		}
		s.memory, s.start, s.length = true, c.at, int64(size)
	}
	return c.at + int64(size), nil
}

func (s *vmwareState) value(name string, index uint32, v uint64) error {
	if name == "regionsCount" {
		s.count = v
		return nil
	}
	if !slices.Contains([]string{"regionPPN", "regionPageNum", "regionSize"}, name) {
		return nil
	}
	if index >= vmwareMaxRegions {
		return malformed(vmwareName, "region %d of memory", index)
	}
	r := s.regions[index]
	if r == nil {
		r = &vmwareRegion{}
		s.regions[index] = r
	}
	switch name {
	case "regionPPN":
		r.ppn = v
	case "regionPageNum":
		r.page = v
	case "regionSize":
		r.size = v
	}
	return nil
}
