package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
)

// Partition is a partition of a disk, with the number that Linux gives it.
type Partition struct {
	Number   int
	Off, Len int64 // bytes
}

// ErrNoTable says that a disk has no partition table.
var ErrNoTable = errors.New("no partition table")

// sector is the unit of a table, in bytes. A virtio disk has this sector size, whatever its image is on.
const sector = 512

// Bounds on what is read of a table, whose content may be anything. Linux itself takes 256
// partitions (include/linux/genhd.h, DISK_MAX_PARTS) and follows 100 links of a chain
// (block/partitions/msdos.c, parse_extended).
const (
	maxParts     = 256
	maxChain     = 100
	maxEntry     = 4096
	maxEntryRoom = 1 << 20
)

// Table reads the partition table of a disk of size bytes: a GUID partition table (UEFI
// specification, 5.3), or that of a PC with its logical partitions (block/partitions/msdos.c). It
// fails with ErrNoTable if there is none. A table that contradicts itself is an error, as is a GPT
// whose first copy is damaged: Linux may use another copy then.
func Table(r io.ReaderAt, size int64) ([]Partition, error) {
	b := make([]byte, 2*sector)
	if size < int64(len(b)) {
		return nil, ErrNoTable
	}
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	if b[510] != 0x55 || b[511] != 0xaa {
		return nil, ErrNoTable
	}
	entries := b[446:510]
	protective := false
	for i := range 4 {
		e := entries[16*i:]
		if e[0]&0x7f != 0 { // the boot indicator: no table, but a boot sector
			return nil, ErrNoTable
		}
		protective = protective || e[4] == typeProtective
	}
	var parts []Partition
	var err error
	if protective {
		parts, err = gpt(r, b[sector:], size)
	} else {
		parts, err = pc(r, entries, size)
	}
	if err == nil {
		err = apart(parts)
	}
	if err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	if len(parts) == 0 && !protective {
		return nil, ErrNoTable // other boot sectors end with 55 AA, too
	}
	return parts, nil
}

// Types of partitions of a PC: the protective one in front of a GPT, and the extended ones.
const typeProtective = 0xee

var typesExtended = []byte{0x05, 0x0f, 0x85}

// gpt reads a GUID partition table: its header is at the second sector.
func gpt(r io.ReaderAt, h []byte, size int64) ([]Partition, error) {
	le := binary.LittleEndian
	headerLen := le.Uint32(h[12:])
	if string(h[:8]) != "EFI PART" || headerLen < 92 || headerLen > sector || le.Uint64(h[24:]) != 1 {
		return nil, errors.New("its GPT header is missing or damaged: repair it (sgdisk --verify)")
	}
	sum := le.Uint32(h[16:])
	header := slices.Clone(h[:headerLen])
	clear(header[16:20])
	if crc32.ChecksumIEEE(header) != sum {
		return nil, errors.New("the checksum of its GPT header is wrong: repair it (sgdisk --verify)")
	}
	at, n, each := le.Uint64(h[72:]), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if each < 128 || each > maxEntry || n == 0 || n*each > maxEntryRoom || at > uint64(size)/sector {
		return nil, fmt.Errorf("its GPT header makes no sense: %d entries of %d bytes at sector %d", n, each, at)
	}
	b := make([]byte, n*each)
	if _, err := r.ReadAt(b, int64(at)*sector); err != nil {
		return nil, fmt.Errorf("read GPT: %w", err)
	}
	if crc32.ChecksumIEEE(b) != le.Uint32(h[88:]) {
		return nil, errors.New("the checksum of its GPT entries is wrong: repair them (sgdisk --verify)")
	}
	var parts []Partition
	for i := range min(n, maxParts) {
		e := b[i*each:]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		p, err := partition(int(i)+1, le.Uint64(e[32:]), le.Uint64(e[40:]), size)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// partition is the partition from sector first to sector last, inclusive.
func partition(number int, first, last uint64, size int64) (Partition, error) {
	if first == 0 || last < first || last >= uint64(size)/sector {
		return Partition{}, fmt.Errorf("partition %d is from sector %d to %d, of a disk with %d", number, first, last, size/sector)
	}
	return Partition{number, int64(first) * sector, int64(last-first+1) * sector}, nil
}

// pc reads the table of a PC.
func pc(r io.ReaderAt, entries []byte, size int64) (parts []Partition, err error) {
	le := binary.LittleEndian
	for i := range 4 {
		e := entries[16*i:]
		kind, first, n := e[4], uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		if kind == 0 || n == 0 {
			continue
		}
		if slices.Contains(typesExtended, kind) {
			logical, err := chain(r, first, size)
			if err != nil {
				return nil, err
			}
			parts = append(parts, logical...)
			continue
		}
		p, err := partition(i+1, first, first+n-1, size)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// chain reads logical partitions, from the sector where the extended one begins. In front of each is
// a table with an entry for the partition itself and one for the next link.
func chain(r io.ReaderAt, extended uint64, size int64) (parts []Partition, err error) {
	le := binary.LittleEndian
	b := make([]byte, sector)
	for at, links := extended, 0; at != 0; links++ {
		if links == maxChain || at >= uint64(size)/sector {
			return nil, fmt.Errorf("the chain of logical partitions is a loop or leaves the disk, at sector %d", at)
		}
		if _, err := r.ReadAt(b, int64(at)*sector); err != nil {
			return nil, fmt.Errorf("read logical partitions: %w", err)
		}
		if b[510] != 0x55 || b[511] != 0xaa {
			return nil, fmt.Errorf("sector %d has no table of logical partitions", at)
		}
		here := at
		at = 0
		for i := range 2 {
			e := b[446+16*i:]
			kind, first, n := e[4], uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
			switch {
			case kind == 0 || n == 0:
			case slices.Contains(typesExtended, kind):
				at = extended + first
			default:
				p, err := partition(5+len(parts), here+first, here+first+n-1, size)
				if err != nil {
					return nil, err
				}
				parts = append(parts, p)
			}
		}
	}
	return parts, nil
}

// apart checks that no two partitions have a byte in common.
func apart(parts []Partition) error {
	sorted := slices.SortedFunc(slices.Values(parts), func(a, b Partition) int { return int(min(1, max(-1, a.Off-b.Off))) })
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; a.Off+a.Len > b.Off {
			return fmt.Errorf("partitions %d and %d overlap", a.Number, b.Number)
		}
	}
	return nil
}

// Find finds the partition with that number.
func Find(r io.ReaderAt, size int64, number int) (Partition, error) {
	parts, err := Table(r, size)
	if err != nil {
		return Partition{}, err
	}
	var has []string
	for _, p := range parts {
		if p.Number == number {
			return p, nil
		}
		has = append(has, fmt.Sprint(p.Number))
	}
	if len(has) == 0 {
		has = []string{"none"}
	}
	return Partition{}, fmt.Errorf("no partition %d in its table, which has %s", number, strings.Join(has, ", "))
}
