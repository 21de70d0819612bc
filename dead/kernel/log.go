package kernel

import (
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"understudy.dev/understudy/dead/addr"
)

// LogRecord is a message of the kernel's log.
type LogRecord struct {
	Seq  uint64
	Time time.Duration // since boot
	Text string
}

// logRing is the kernel's log buffer (kernel/printk/printk_ringbuffer.h, since
// 5.10): a ring of descriptors, a ring of information about each record, and
// a ring of text.
type logRing struct {
	descs, infos, data addr.Virt
	count, size        uint64 // number of descriptors, and bytes of text: powers of two
	tail, head         uint64 // numbers of the oldest and newest descriptor
	desc, info         *Layout
	state, begin, next Field // in prb_desc
	seq, when, length  Field // in printk_info
}

// Bounds of the log; Debian's has 2^12 to 2^13 records in 2^17 to 2^18 bytes.
const (
	maxLogBits    = 26
	descStateBits = 62 // the two bits above are the state, those below the number
	descIDMask    = 1<<descStateBits - 1
)

func (k *Kernel) openLog() (*logRing, error) {
	at, err := k.symbolU64("prb")
	if err != nil {
		return nil, err
	}
	rb := k.types.Layout("printk_ringbuffer")
	r := &logRing{desc: k.types.Layout("prb_desc"), info: k.types.Layout("printk_info")}
	r.state = r.desc.Field("state_var", 8)
	r.begin, r.next = r.desc.Field("text_blk_lpos.begin", 8), r.desc.Field("text_blk_lpos.next", 8)
	r.seq, r.when, r.length = r.info.Field("seq", 8), r.info.Field("ts_nsec", 8), r.info.Field("text_len", 2)
	countBits, sizeBits := rb.Field("desc_ring.count_bits", 4), rb.Field("text_data_ring.size_bits", 4)
	descs, infos, data := rb.Field("desc_ring.descs", 8), rb.Field("desc_ring.infos", 8), rb.Field("text_data_ring.data", 8)
	tail, head := rb.Field("desc_ring.tail_id", 8), rb.Field("desc_ring.head_id", 8)
	if err := errors.Join(rb.Err(), r.desc.Err(), r.info.Err()); err != nil {
		return nil, err
	}
	b, err := k.Bytes(addr.Virt(at), rb.Size)
	if err != nil {
		return nil, err
	}
	if countBits.Uint(b) > maxLogBits || sizeBits.Uint(b) > maxLogBits {
		return nil, fmt.Errorf("2^%d records in 2^%d bytes", countBits.Uint(b), sizeBits.Uint(b))
	}
	r.count, r.size = 1<<countBits.Uint(b), 1<<sizeBits.Uint(b)
	r.descs, r.infos, r.data = descs.Pointer(b), infos.Pointer(b), data.Pointer(b)
	r.tail, r.head = tail.Uint(b), head.Uint(b)
	return r, nil
}

// Log yields the kernel's log, oldest record first, without records that were
// being written or overwritten.
func (k *Kernel) Log() iter.Seq2[LogRecord, error] {
	return func(yield func(LogRecord, error) bool) {
		r, err := k.openLog()
		if err != nil {
			yield(LogRecord{}, fmt.Errorf("read log: %w", err))
			return
		}
		for n := uint64(0); n < r.count; n++ {
			id := (r.tail + n) & descIDMask
			record, ok, err := k.logRecord(r, id)
			if err != nil {
				yield(LogRecord{}, fmt.Errorf("read log: %w", err))
				return
			}
			if ok && !yield(record, nil) || id == r.head&descIDMask {
				return
			}
		}
	}
}

// logRecord reads the record with a number; the result is false if the record is not complete.
func (k *Kernel) logRecord(r *logRing, id uint64) (LogRecord, bool, error) {
	slot := addr.Virt(id % r.count)
	d, err := k.Bytes(r.descs+slot*addr.Virt(r.desc.Size), r.desc.Size)
	if err != nil {
		return LogRecord{}, false, err
	}
	const committed, finalized = 1, 2
	state := r.state.Uint(d)
	if s := state >> descStateBits; state&descIDMask != id || (s != committed && s != finalized) {
		return LogRecord{}, false, nil
	}
	i, err := k.Bytes(r.infos+slot*addr.Virt(r.info.Size), r.info.Size)
	if err != nil {
		return LogRecord{}, false, err
	}
	begin, next, length := r.begin.Uint(d), r.next.Uint(d), r.length.Uint(i)
	record := LogRecord{Seq: r.seq.Uint(i), Time: time.Duration(r.when.Uint(i))}
	if begin&1 == 1 || length == 0 { // a record without text
		return record, true, nil
	}
	// A block that would cross the end of the ring lies at its start instead.
	if begin/r.size != next/r.size && next%r.size != 0 {
		begin = 0
	}
	const head = 8 // the record's number, before its text
	if begin%r.size+head+length > r.size {
		return LogRecord{}, false, nil
	}
	text, err := k.Bytes(r.data+addr.Virt(begin%r.size+head), int(length))
	record.Text = string(text)
	return record, true, err
}

// panicPrefix begins the message of a panic (kernel/panic.c).
const panicPrefix = "Kernel panic - not syncing: "

// PanicMessage returns why the kernel panicked, in its own words. The error wraps
// ErrNotFound if the log has nothing about a panic.
func (k *Kernel) PanicMessage() (string, error) {
	for r, err := range k.Log() {
		if err != nil {
			return "", err
		}
		if why, ok := strings.CutPrefix(r.Text, panicPrefix); ok {
			return why, nil
		}
	}
	return "", fmt.Errorf("panic in log: %w", ErrNotFound)
}
