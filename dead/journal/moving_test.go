package journal

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// TestSettled judges heads on the forget list: while the lock of the lists is held, one that is not dirty counts as
// freed only if no step of a move looks like that.
func TestSettled(t *testing.T) {
	m := kerneltest.New(t)
	buffer := m.Alloc(16)
	m.Finish(&btf.Struct{Name: "page", Size: kerneltest.PageStruct})
	k, err := kernel.Find(m)
	if err != nil {
		t.Fatal(err)
	}
	l := &layout{}
	l.head.buffer, l.head.modified, l.head.nextTransaction = kernel.Field{Off: 0, Size: 8}, kernel.Field{Off: 8, Size: 4}, kernel.Field{Off: 16, Size: 8}
	l.buffer.state, l.buffer.freed, l.buffer.jbdDirty = kernel.Field{Off: 0, Size: 8}, 2, 5
	const freed, dirty = 1 << 2, 1 << 5
	held := map[addr.Virt]struct{}{}
	for name, tc := range map[string]struct {
		listed map[addr.Virt]struct{}
		state  uint64 // of the buffer
		mod    uint32
		next   uint64
		last   bool
		txn    State
		ok     bool
	}{
		"the lock is free":                     {nil, 0, 1, 0, true, StateCommitDataFlush, true},
		"dirty":                                {held, dirty, 1, 0, true, StateCommitDataFlush, true},
		"freed by a later transaction":         {held, freed, 1, 8, true, StateCommitDataFlush, true},
		"freed":                                {held, 0, 0, 0, true, StateRunning, true},
		"freed, being committed":               {held, 0, 0, 0, false, StateCommitDataFlush, true},
		"on its way here, modified":            {held, 0, 1, 0, true, StateCommitDataFlush, false},
		"on its way here, somebody waits":      {held, 0, 0, 0, true, StateCommitDataFlush, false},
		"on its way to the metadata":           {held, 0, 1, 0, false, StateRunning, false},
		"on its way to the next transaction":   {held, 0, 0, 8, false, StateCommitJournalFlush, false},
		"the same, modified in that one, last": {held, 0, 1, 8, true, StateCommitJournalFlush, false},
	} {
		m.PutU64(buffer, tc.state)
		head := make([]byte, 24)
		binary.LittleEndian.PutUint64(head, uint64(buffer))
		binary.LittleEndian.PutUint32(head[8:], tc.mod)
		binary.LittleEndian.PutUint64(head[16:], tc.next)
		err := (&reader{k: k, l: l, listed: tc.listed}).settled(&Transaction{State: tc.txn}, head, tc.last)
		if tc.ok && err != nil || !tc.ok && !errors.Is(err, errMoving) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDone judges heads that are on no list: a transaction that writes its commit block is through with its blocks one by one, once that is
// on the disk. Any other step of a move may have the block missing.
func TestDone(t *testing.T) {
	l := &layout{}
	l.head.transaction, l.head.nextTransaction, l.head.list = kernel.Field{Off: 0, Size: 8}, kernel.Field{Off: 8, Size: 8}, kernel.Field{Off: 16, Size: 4}
	const at, other = 0xffff888000001000, 0xffff888000002000
	for name, tc := range map[string]struct {
		state       State
		owner, next uint64
		list        uint32
		done        bool
	}{
		"let go of":                            {StateCommitJournalFlush, at, 0, listNone, true},
		"on its way to the next transaction":   {StateCommitJournalFlush, at, other, listNone, false},
		"already that of the next transaction": {StateCommitJournalFlush, other, 0, listNone, false},
		"on its way to the forget list":        {StateCommitDataFlush, at, 0, listNone, false},
		"on its way to the shadow list":        {StateCommit, at, 0, listNone, false},
		"on a list that has lost it":           {StateCommitJournalFlush, at, 0, listForget, false},
	} {
		head := binary.LittleEndian.AppendUint64(nil, tc.owner)
		head = binary.LittleEndian.AppendUint64(head, tc.next)
		head = binary.LittleEndian.AppendUint32(head, tc.list)
		if done := (&reader{l: l}).done(&Transaction{at: at, State: tc.state}, head); done != tc.done {
			t.Errorf("%s: %v", name, done)
		}
	}
	if (&reader{l: l}).done(nil, make([]byte, 20)) {
		t.Error("there is no transaction")
	}
}
