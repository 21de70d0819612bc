package rootdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// extent is a part of a disk, in bytes.
type extent struct{ start, size int64 }

// Sizes and places in partition tables, bytes: of disks with sectors of 512 (UEFI
// specification 2.10, 5.2 and 5.3).
const (
	sector         = 512
	mbrEntries     = 446
	mbrEntry       = 16
	mbrProtective  = 0xee
	gptEntryLeast  = 128
	gptEntryMost   = 4096
	gptEntriesMost = 1024
)

// errNoTable is why a disk has no parts.
var errNoTable = errors.New("no partition table")

// partitions are the parts of a disk of that size, in the order of its table. Extended ones of
// the old table are not looked into. A part that reaches beyond the disk is an error.
func partitions(disk io.ReaderAt, size int64) ([]extent, error) {
	var b [sector]byte
	if _, err := disk.ReadAt(b[:], 0); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	if b[510] != 0x55 || b[511] != 0xaa {
		return nil, errNoTable
	}
	var parts []extent
	for i := range 4 {
		e := b[mbrEntries+i*mbrEntry:][:mbrEntry]
		switch {
		case e[4] == mbrProtective:
			return gptPartitions(disk, size)
		case e[0]&0x7f != 0:
			return nil, errNoTable // the boot sector of a file system
		case e[4] == 0:
			continue
		}
		part, err := within(size, uint64(binary.LittleEndian.Uint32(e[8:])), uint64(binary.LittleEndian.Uint32(e[12:])))
		if err != nil {
			return nil, fmt.Errorf("partition %d: %w", i+1, err)
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return nil, errNoTable
	}
	return parts, nil
}

// gptPartitions are those of the newer table.
func gptPartitions(disk io.ReaderAt, size int64) ([]extent, error) {
	var h [sector]byte
	if _, err := disk.ReadAt(h[:], sector); err != nil {
		return nil, fmt.Errorf("read GUID partition table: %w", err)
	}
	if string(h[:8]) != "EFI PART" {
		return nil, errors.New("its partition table says that there is a GUID partition table, and there is none")
	}
	at, count, length := binary.LittleEndian.Uint64(h[72:]), binary.LittleEndian.Uint32(h[80:]), binary.LittleEndian.Uint32(h[84:])
	if count > gptEntriesMost || length < gptEntryLeast || length > gptEntryMost || at >= uint64(size)/sector {
		return nil, fmt.Errorf("its GUID partition table is not plausible: %d entries of %d bytes at sector %d", count, length, at)
	}
	var parts []extent
	entry := make([]byte, length)
	for i := range int64(count) {
		if _, err := disk.ReadAt(entry, int64(at)*sector+i*int64(length)); err != nil {
			return nil, fmt.Errorf("read GUID partition table: %w", err)
		}
		if [16]byte(entry) == [16]byte{} { // its type: unused
			continue
		}
		first, last := binary.LittleEndian.Uint64(entry[32:]), binary.LittleEndian.Uint64(entry[40:])
		if last < first {
			return nil, fmt.Errorf("partition %d ends before it begins", i+1)
		}
		part, err := within(size, first, last-first+1)
		if err != nil {
			return nil, fmt.Errorf("partition %d: %w", i+1, err)
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// within is a part of so many sectors, if a disk of that size has room for it.
func within(size int64, first, sectors uint64) (extent, error) {
	all := uint64(size) / sector
	if first == 0 || sectors == 0 || first >= all || sectors > all-first {
		return extent{}, fmt.Errorf("it is of %d sectors from %d on, and the disk has %d", sectors, first, all)
	}
	return extent{int64(first) * sector, int64(sectors) * sector}, nil
}

// fileSystem is what a part of a disk has on it.
type fileSystem struct {
	extent
	kind string // ext4 for all of that family
	uuid string
}

// Places in superblocks, bytes.
const (
	extSuper        = 1024 // fs/ext4/ext4.h, struct ext4_super_block
	extMagic        = extSuper + 0x38
	extIncompatible = extSuper + 0x60
	extUUID         = extSuper + 0x68
	extRecover      = 0x4 // EXT4_FEATURE_INCOMPAT_RECOVER
)

// errUnclean is why a file system is left as it is.
var errUnclean = errors.New("its file system was not unmounted")

// probe says what file system a part of a disk has. One of another family than ext has a kind
// for people only.
func probe(disk io.ReaderAt, part extent) (fileSystem, error) {
	fs := fileSystem{extent: part}
	var b [2048]byte
	if part.size < int64(len(b)) {
		return fs, nil
	}
	if _, err := disk.ReadAt(b[:], part.start); err != nil {
		return fs, fmt.Errorf("read superblock: %w", err)
	}
	switch {
	case string(b[:4]) == "XFSB":
		fs.kind = "xfs"
	case string(b[:6]) == "LUKS\xba\xbe":
		fs.kind = "LUKS"
	case string(b[512:520]) == "LABELONE":
		fs.kind = "LVM"
	case binary.LittleEndian.Uint16(b[extMagic:]) == 0xef53:
		fs.kind = "ext4"
		u := b[extUUID:][:16]
		fs.uuid = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
		if binary.LittleEndian.Uint32(b[extIncompatible:])&extRecover != 0 {
			return fs, errUnclean
		}
	}
	return fs, nil
}
