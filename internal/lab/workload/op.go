package workload

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// opKind is how an operation changes its file.
type opKind int

const (
	opWrite    opKind = iota // pwrite(2), also beyond the end
	opMap                    // stores into a shared mapping, within the file
	opTruncate               // ftruncate(2) down to off
	opProbe                  // pwrite(2) of the probe text
)

// op is one operation on a file; offsets and lengths are in bytes and seldom aligned.
type op struct {
	kind opKind
	off  int64
	len  int64
	id   uint64 // of the payload
}

// sizeAfter returns the file's size after the operation.
func (o op) sizeAfter(size int64) int64 {
	if o.kind == opTruncate {
		return o.off
	}
	return max(size, o.off+o.len)
}

// payload returns what the operation writes, valid until the next call.
func (p *Plan) payload(run *pool, o op) []byte {
	switch o.kind {
	case opTruncate:
		return nil
	case opProbe:
		return probeText(p.spec.Seed, runSide)
	}
	return run.payload(o.id, int(o.len))
}

// applyTo does the operation to a file's content in memory.
func (o op) applyTo(model, payload []byte) []byte {
	if end := o.sizeAfter(int64(len(model))); end < int64(len(model)) {
		return model[:end]
	} else if end > int64(len(model)) {
		model = append(model, make([]byte, end-int64(len(model)))...)
	}
	copy(model[o.off:], payload)
	return model
}

// applyToFile does the operation to the file.
func (o op) applyToFile(f *os.File, payload []byte) error {
	switch o.kind {
	case opTruncate:
		return f.Truncate(o.off)
	case opMap:
		return storeMapped(f, o.off, payload)
	}
	_, err := f.WriteAt(payload, o.off)
	return err
}

// storeMapped stores through a mapping of just the pages concerned.
func storeMapped(f *os.File, off int64, payload []byte) error {
	start := off &^ (PageSize - 1)
	length := int(off-start) + len(payload)
	mapping, err := unix.Mmap(int(f.Fd()), start, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %d bytes at %d: %w", length, start, err)
	}
	copy(mapping[off-start:], payload)
	return unix.Munmap(mapping)
}
