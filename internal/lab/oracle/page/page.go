// Package page is the memory that a guest of the oracle shares with the host:
// what the guest has to do, and how far it is. It is a file on the host and an ivshmem
// device in the guest, and what was stored to it outlives the guest, whatever ends it.
//
// # Layout
//
// Little-endian throughout. Headers are at fixed places; a thread's area begins
// with its two counters and then has a record for each operation, in order.
//
//	0        magic, 8 bytes
//	8        words of 4 bytes, see Word
//	4096     what went wrong: length, 4 bytes, and text
//	65536    the order: length, 4 bytes, and JSON
//	1 MiB    an area of AreaSize for each thread; of a walk, instead, its length
//	         (8 bytes) and its lines
package page

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"understudy.dev/understudy/internal/lab/oracle/script"
)

// Sizes and places, in bytes.
const (
	Size     = 64 << 20 // of the whole: a power of two, as a PCI region must be
	Threads  = 8        // at most
	AreaSize = (Size - areas) / Threads

	magic     = 0x454c4341524f // ORACLE
	failure   = 4096
	maxFail   = 4000
	order     = 65536
	maxOrder  = 512 << 10
	areas     = 1 << 20
	records   = 256 // of an area
	statSize  = 56
	recSize   = 8 + script.MaxTouched*statSize
	beginWord = 0
	doneWord  = 64
)

// MaxRecords is how many operations a thread can report.
const MaxRecords = (AreaSize - records) / recSize

// Word is one of the words that both sides read.
type Word int

// The words. The host sets Go, and the guest all others.
const (
	State     Word = iota // see the states
	Go                    // 1: the host is ready for the crash
	SyncBegun             // 1: syncfs(2) has begun; it is called again and again, so that the crash falls into it
	SyncEnded             // 1: these calls have ended
	Writeback             // KiB under writeback right before the crash
	InCommit              // 1: the journal's thread was committing right before the crash
	RootSec               // mtime of the top directory, low word
	RootSecHigh
	RootNsec
	Progress // how far a program is
	words
)

// States of a guest.
const (
	Booting uint32 = iota
	Running        // all threads are past the barrier
	Crashing
	Ended // nothing goes on any more, the disks are unmounted
	Failed
)

// Page is the shared memory.
type Page []byte

// Of returns the page in mapped memory of Size bytes, which must stay mapped and
// be aligned to 8 bytes.
func Of(b []byte) (Page, error) {
	if len(b) != Size {
		return nil, fmt.Errorf("%d bytes of shared memory, want %d", len(b), Size)
	}
	return Page(b), nil
}

// Give writes the order, as JSON, and marks the page as good.
func (p Page) Give(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxOrder {
		return fmt.Errorf("an order of %d bytes", len(b))
	}
	copy(p[order+4:], b)
	binary.LittleEndian.PutUint32(p[order:], uint32(len(b)))
	binary.LittleEndian.PutUint64(p, magic)
	return nil
}

// Order reads the order.
func (p Page) Order(v any) error {
	n := binary.LittleEndian.Uint32(p[order:])
	if binary.LittleEndian.Uint64(p) != magic || n > maxOrder {
		return errors.New("no order in shared memory")
	}
	return json.Unmarshal(p[order+4:][:n], v)
}

// word returns the counter at an offset; it is aligned, since the page is.
func (p Page) word(at int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&p[at])) }

// Load reads a word.
func (p Page) Load(w Word) uint32 { return p.word(8 + 4*int(w)).Load() }

// Store writes a word.
func (p Page) Store(w Word, v uint32) { p.word(8 + 4*int(w)).Store(v) }

// Fail records what went wrong; only the first call counts.
func (p Page) Fail(err error) {
	if p.word(8+4*int(State)).Load() == Failed {
		return
	}
	text := err.Error()
	n := copy(p[failure+4:][:maxFail], text)
	binary.LittleEndian.PutUint32(p[failure:], uint32(n))
	p.Store(State, Failed)
}

// Failure returns what went wrong.
func (p Page) Failure() string {
	n := min(binary.LittleEndian.Uint32(p[failure:]), maxFail)
	return string(p[failure+4:][:n])
}

// Area is a thread's part.
type Area struct {
	p  Page
	at int
}

// Area returns the area of a thread, from 0 up to Threads.
func (p Page) Area(thread int) Area { return Area{p, areas + thread*AreaSize} }

// Begin records that the thread begins operation n.
func (a Area) Begin(n int) { a.p.word(a.at + beginWord).Store(uint32(n + 1)) }

// Report records that operation n is done, and the state of the files that it touched.
func (a Area) Report(n int, stats []script.Stat) {
	b := a.p[a.at+records+n*recSize:][:recSize]
	b[0] = byte(len(stats))
	for i, st := range stats {
		encode(b[8+i*statSize:][:statSize], st)
	}
	a.p.word(a.at + doneWord).Store(uint32(n + 1))
}

// Progress returns how many operations the thread began, and how many it reported.
func (a Area) Progress() (begun, done int, err error) {
	begun, done = int(a.p.word(a.at+beginWord).Load()), int(a.p.word(a.at+doneWord).Load())
	if done > MaxRecords || begun > MaxRecords || begun < done || begun > done+1 {
		return 0, 0, fmt.Errorf("%d operations begun and %d done", begun, done)
	}
	return begun, done, nil
}

// Reported returns what was reported of operation n, which must be done.
func (a Area) Reported(n int) ([]script.Stat, error) {
	b := a.p[a.at+records+n*recSize:][:recSize]
	count := int(b[0])
	if count > script.MaxTouched {
		return nil, fmt.Errorf("operation %d: %d files touched", n, count)
	}
	stats := make([]script.Stat, count)
	for i := range stats {
		stats[i] = decode(b[8+i*statSize:][:statSize])
	}
	return stats, nil
}

func encode(b []byte, st script.Stat) {
	le := binary.LittleEndian
	le.PutUint64(b, st.Ino)
	le.PutUint64(b[8:], uint64(st.Sec))
	le.PutUint64(b[16:], uint64(st.Size))
	le.PutUint32(b[24:], st.Nsec)
	le.PutUint32(b[28:], st.Mode)
	le.PutUint32(b[32:], st.Nlink)
	le.PutUint32(b[36:], st.UID)
	le.PutUint32(b[40:], st.GID)
	b[44], b[45] = bit(st.Cap), bit(st.NoDump)
}

func bit(set bool) byte {
	if set {
		return 1
	}
	return 0
}

func decode(b []byte) script.Stat {
	le := binary.LittleEndian
	return script.Stat{
		Ino: le.Uint64(b), Sec: int64(le.Uint64(b[8:])), Size: int64(le.Uint64(b[16:])), Nsec: le.Uint32(b[24:]),
		Mode: le.Uint32(b[28:]), Nlink: le.Uint32(b[32:]), UID: le.Uint32(b[36:]), GID: le.Uint32(b[40:]), Cap: b[44] != 0, NoDump: b[45] != 0,
	}
}

// Tell writes what a walk found.
func (p Page) Tell(b []byte) error {
	if len(b) > Size-areas-8 {
		return fmt.Errorf("a walk of %d bytes has no room", len(b))
	}
	copy(p[areas+8:], b)
	binary.LittleEndian.PutUint64(p[areas:], uint64(len(b)))
	return nil
}

// Told returns what a walk found.
func (p Page) Told() ([]byte, error) {
	n := binary.LittleEndian.Uint64(p[areas:])
	if n > Size-areas-8 {
		return nil, fmt.Errorf("a walk of %d bytes", n)
	}
	return p[areas+8:][:n], nil
}
