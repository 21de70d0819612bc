package ram

import (
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
)

// makedumpfile's format for pipes (its IMPLEMENTATION, "The flattened format"; QEMU
// also writes its kdump formats in it, dump/dump.c, write_start_flat_header): a
// header of one page, then records of an offset, a size and that many bytes,
// which belong at that offset of the real file. Numbers are big endian. The last
// record has -1 for both.
const (
	flatMagic      = "makedumpfile\x00"
	flatName       = "flattened dump"
	flatHeaderSize = 4096
	flatRecordSize = 16
	flatType       = 1 // TYPE_FLAT_HEADER
	flatVersion    = 1 // VERSION_FLAT_HEADER
)

// flatMaxRecords bounds the index in memory to 1.5 GiB. Writers collect 64 KiB or
// more in a record.
const flatMaxRecords = 1 << 26

// flatRecord is a piece of the real file.
type flatRecord struct {
	start, end int64 // in the real file
	at         int64 // in the flattened file
}

// flat is the file that a flattened file represents.
type flat struct {
	in      input
	records []flatRecord // ascending, disjoint
}

// openFlat makes an index of a flattened file. It reads the heads of its records,
// not the data.
func openFlat(in input) (*flat, error) {
	head := make([]byte, 32)
	if in.Size() < flatHeaderSize {
		return nil, truncated(flatName, flatHeaderSize, in.Size())
	}
	if _, err := in.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read flat header: %w", err)
	}
	if !bytes.Equal(head[:16], []byte(flatMagic+"\x00\x00\x00")) {
		return nil, malformed(flatName, "unknown signature %q", head[:16])
	}
	kind, version := binary.BigEndian.Uint64(head[16:]), binary.BigEndian.Uint64(head[24:])
	if kind != flatType || version != flatVersion {
		return nil, malformed(flatName, "type %d, version %d are unknown", kind, version)
	}
	records, err := readFlatRecords(in)
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, malformed(flatName, "it is empty")
	}
	return &flat{in: in, records: overlay(records)}, nil
}

func readFlatRecords(in input) ([]flatRecord, error) {
	var records []flatRecord
	head := make([]byte, flatRecordSize)
	for pos := int64(flatHeaderSize); ; {
		if pos+flatRecordSize > in.Size() {
			return nil, truncated(flatName, uint64(pos)+flatRecordSize, in.Size())
		}
		if _, err := in.ReadAt(head, pos); err != nil {
			return nil, fmt.Errorf("read flat record: %w", err)
		}
		pos += flatRecordSize
		off, size := int64(binary.BigEndian.Uint64(head)), int64(binary.BigEndian.Uint64(head[8:]))
		switch {
		case off == -1 && size == -1:
			return records, nil
		case off < 0 || size <= 0 || off > 1<<62 || size > 1<<62:
			return nil, malformed(flatName, "a record of %d bytes for offset %d", size, off)
		case size > in.Size()-pos:
			return nil, truncated(flatName, uint64(pos)+uint64(size), in.Size())
		case len(records) == flatMaxRecords:
			return nil, malformed(flatName, "more than %d records", flatMaxRecords)
		}
		records = append(records, flatRecord{start: off, end: off + size, at: pos})
		pos += size
	}
}

// overlay returns what remains visible of records when each is written over those
// before it, in ascending order.
func overlay(records []flatRecord) []flatRecord {
	// Records that were written later are later in the file: at gives their order in time.
	slices.SortFunc(records, func(a, b flatRecord) int { return cmp.Compare(a.start, b.start) })
	if disjoint(records) {
		return records
	}
	var out []flatRecord
	var open latestFirst
	pos, next := int64(0), 0
	for next < len(records) || len(open) > 0 {
		if len(open) == 0 {
			pos = records[next].start
		}
		for ; next < len(records) && records[next].start <= pos; next++ {
			heap.Push(&open, records[next])
		}
		top := open[0]
		if top.end <= pos {
			heap.Pop(&open)
			continue
		}
		until := top.end
		if next < len(records) {
			until = min(until, records[next].start)
		}
		out = appendPiece(out, flatRecord{start: pos, end: until, at: top.at + pos - top.start})
		pos = until
	}
	return out
}

func disjoint(sorted []flatRecord) bool {
	for i := 1; i < len(sorted); i++ {
		if sorted[i].start < sorted[i-1].end {
			return false
		}
	}
	return true
}

func appendPiece(out []flatRecord, p flatRecord) []flatRecord {
	if last := len(out) - 1; last >= 0 && out[last].end == p.start && out[last].at+out[last].end-out[last].start == p.at {
		out[last].end = p.end
		return out
	}
	return append(out, p)
}

// latestFirst is a heap of records with the one written last on top.
type latestFirst []flatRecord

func (h latestFirst) Len() int           { return len(h) }
func (h latestFirst) Less(i, j int) bool { return h[i].at > h[j].at }
func (h latestFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *latestFirst) Push(x any)        { *h = append(*h, x.(flatRecord)) }
func (h *latestFirst) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// errGap says that nothing was ever written to a part of the real file.
var errGap = errors.New("the flattened dump has nothing there")

// ReadAt reads from the real file. An offset that no record wrote is an error: a
// real file would have zeros there, made up by the file system.
func (f *flat) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	i := sort.Search(len(f.records), func(i int) bool { return f.records[i].end > off })
	for ; done < len(p); i++ {
		switch {
		case i == len(f.records):
			return done, io.EOF
		case f.records[i].start > off:
			return done, fmt.Errorf("read offset %#x: %w", off, errGap)
		}
		r := f.records[i]
		n := min(int64(len(p)-done), r.end-off)
		got, err := f.in.ReadAt(p[done:done+int(n)], r.at+off-r.start)
		done, off = done+got, off+int64(got)
		if int64(got) < n {
			return done, err
		}
	}
	return done, nil
}

func (f *flat) Size() int64 { return f.records[len(f.records)-1].end }

func (f *flat) Close() error { return f.in.Close() }
