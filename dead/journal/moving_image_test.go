package journal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// lists changes the lists of a journal's transactions in memory as jbd2 does.
type lists struct {
	t                                                  *testing.T
	k                                                  *kernel.Kernel
	mem                                                *damaged
	lock, next, previous, list, buffer, state, buffers kernel.Field
	count                                              kernel.Field
	jbdDirty                                           uint64 // in state
}

func newLists(t *testing.T, c *pagecache.Cache, mem *damaged) *lists {
	t.Helper()
	j, h, tr := c.Layout("journal_s", "jbd2", "ext4"), c.Layout("journal_head", "jbd2", "ext4"), c.Layout("transaction_s", "jbd2", "ext4")
	b := c.Kernel().Types().Layout("buffer_head")
	private, err := c.Kernel().Types().Enum("bh_state_bits", "BH_PrivateStart")
	l := &lists{t: t, k: c.Kernel(), mem: mem, lock: j.Field("j_list_lock.rlock.raw_lock.val", 4),
		next: h.Field("b_tnext", 8), previous: h.Field("b_tprev", 8), list: h.Field("b_jlist", 4), buffer: h.Field("b_bh", 8),
		state: b.Field("b_state", 8), buffers: tr.Field("t_buffers", 8), count: tr.Field("t_nr_buffers", 4), jbdDirty: 1 << (private + 5)}
	if err := errors.Join(err, j.Err(), h.Err(), tr.Err(), b.Err()); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lists) pointer(at addr.Virt) addr.Virt {
	l.t.Helper()
	v, err := l.k.Pointer(at)
	if err != nil {
		l.t.Fatal(err)
	}
	return v
}

func (l *lists) put(at addr.Virt, size int, v uint64) {
	l.t.Helper()
	pa, err := l.k.Physical(at)
	if err != nil {
		l.t.Fatal(err)
	}
	l.mem.put(pa, binary.LittleEndian.AppendUint64(nil, v)[:size])
}

// heads returns the members of a list.
func (l *lists) heads(first addr.Virt) (out []addr.Virt) {
	for at := first; at != 0; {
		out = append(out, at)
		if at = l.pointer(l.next.In(at)); at == first {
			break
		}
	}
	return out
}

// clean clears BH_JBDDirty of a head's block.
func (l *lists) clean(head addr.Virt) {
	state := l.state.In(l.pointer(l.buffer.In(head)))
	l.put(state, 8, uint64(l.pointer(state))&^l.jbdDirty)
}

// unlink takes a head off its list (__jbd2_journal_temp_unlink_buffer).
func (l *lists) unlink(transaction, list, head addr.Virt) {
	next, previous := l.pointer(l.next.In(head)), l.pointer(l.previous.In(head))
	if head == l.pointer(list) {
		if next == head {
			next = 0
		}
		l.put(list, 8, uint64(next))
	}
	if next != 0 {
		l.put(l.next.In(previous), 8, uint64(next))
		l.put(l.previous.In(next), 8, uint64(previous))
	}
	if list == l.buffers.In(transaction) {
		l.put(l.count.In(transaction), 4, uint64(uint32(l.pointer(l.count.In(transaction))))-1)
	}
	l.put(l.list.In(head), 4, 0)
	l.clean(head)
}

// TestMoving takes blocks off their lists as jbd2 does to move them to another list. Nothing is missed: the commit is
// either read as if nothing had been moved, or refused.
func TestMoving(t *testing.T) {
	for name, spec := range map[string]fixture.Spec{"basic": fixture.Basic, "writeback": fixture.Writeback} {
		t.Run(name, func(t *testing.T) { moveAll(t, fixture.Get(t, spec)) })
	}
}

// moveAll does it with all disks of an image.
func moveAll(t *testing.T, image *fixture.Image) {
	file, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	mem := &damaged{Memory: file, pages: make(map[addr.Phys][]byte)}
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range image.Disks {
		t.Run(d.Name, func(t *testing.T) { moveEach(t, k, mem, d) })
	}
}

func moveEach(t *testing.T, k *kernel.Kernel, mem *damaged, d fixture.Disk) {
	disk, err := os.Open(d.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	read := func() (*journal.Journal, error) {
		c, err := pagecache.Open(k)
		if err != nil {
			t.Fatal(err)
		}
		s := superOf(t, c, d)
		dev, err := c.Device(s, disk)
		if err != nil {
			t.Fatal(err)
		}
		return journal.Of(c, s, dev)
	}
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	e, err := c.Ext4(superOf(t, c, d))
	if err != nil {
		t.Fatal(err)
	}
	l := newLists(t, c, mem)
	whole, err := read()
	if err != nil {
		t.Fatal(err)
	}
	refused, same := 0, 0
	// try does something while the lock is held, and checks that no block goes missing.
	try := func(what string, head addr.Virt, do func()) {
		l.put(l.lock.In(e.Journal.Addr), 4, 1)
		do()
		j, err := read()
		switch {
		case errors.Is(err, journal.ErrDamaged):
			refused++
		case err != nil || !sameBlocks(j, whole):
			t.Errorf("%s: head at %v: the commit is not what it is without that, and accepted: %v", what, head, err)
		default:
			same++
		}
		clear(mem.pages)
	}
	try("nothing moved", 0, func() {})
	if refused > 0 {
		t.Error("refused while nothing is being moved")
	}
	journals, transactions := c.Layout("journal_s", "jbd2", "ext4"), c.Layout("transaction_s", "jbd2", "ext4")
	for _, which := range []string{"j_committing_transaction", "j_running_transaction"} {
		at := l.pointer(journals.Field(which, 8).In(e.Journal.Addr))
		for _, name := range []string{"t_buffers", "t_shadow_list", "t_forget"} {
			if at == 0 {
				continue
			}
			list := transactions.Field(name, 8).In(at)
			heads := l.heads(l.pointer(list))
			for _, head := range heads {
				try(name+", unlinked", head, func() { l.unlink(at, list, head) })
				if name == "t_forget" {
					try(name+", not dirty", head, func() { l.clean(head) })
				}
			}
		}
	}
	t.Logf("%d refused, %d the same", refused, same)
	if refused == 0 {
		t.Error("nothing was moved")
	}
}

// sameBlocks reports whether two states of a journal would commit the same.
func sameBlocks(a, b *journal.Journal) bool {
	blocks := func(j *journal.Journal) map[addr.Block][]byte {
		out := make(map[addr.Block][]byte)
		for _, t := range []*journal.Transaction{j.Committing, j.Running} {
			if t != nil {
				for _, b := range t.Buffers {
					out[b.Block] = b.Data
				}
			}
		}
		return out
	}
	x, y := blocks(a), blocks(b)
	for block, data := range x {
		if other, there := y[block]; !there || !bytes.Equal(data, other) {
			return false
		}
	}
	return len(x) == len(y)
}
