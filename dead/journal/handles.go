package journal

import (
	"fmt"
	"iter"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
)

// Holder is a task that had a handle open when the kernel died: its operation is in
// flight, and may be half in the transaction.
type Holder struct {
	PID  int // of the thread, in the initial namespace
	Task string
	// Operation is what ext4 says the handle is for (fs/ext4/ext4_jbd2.h,
	// EXT4_HT_*).
	Operation string
}

func (h Holder) String() string { return fmt.Sprintf("%s (%d): %s", h.Task, h.PID, h.Operation) }

// operations are the types of handles (fs/ext4/ext4_jbd2.h; the same from 5.10 on).
var operations = [...]string{
	"misc", "inode", "write page", "map blocks", "dir", "truncate", "quota", "resize", "migrate", "move extents", "xattr", "extent conversion",
}

type taskLayout struct {
	task struct {
		size                                   int
		tasks, thread, signal, info, pid, name kernel.Field
	}
	heads  kernel.Field // list of threads, in signal_struct
	handle struct {
		size              int
		transaction, bits kernel.Field
	}
}

func newTaskLayout(c *pagecache.Cache) (*taskLayout, error) {
	l := &taskLayout{}
	t := c.Kernel().Types().Layout("task_struct")
	l.task.size = t.Size
	l.task.tasks = t.Field("tasks", 16)
	l.task.thread = t.Field("thread_node", 16)
	l.task.signal = t.Field("signal", 8)
	l.task.info = t.Field("journal_info", 8)
	l.task.pid = t.Field("pid", 4)
	l.task.name = t.Field("comm", 16)
	if err := t.Err(); err != nil {
		return nil, err
	}
	s := c.Kernel().Types().Layout("signal_struct")
	if l.heads = s.Field("thread_head", 16); s.Err() != nil {
		return nil, s.Err()
	}
	h := c.Layout("jbd2_journal_handle", "jbd2", "ext4")
	l.handle.size = h.Size
	l.handle.transaction = h.Field("h_transaction", 8)
	// The flags are bit fields after h_err: four of one bit, the type in eight,
	// and a line number in sixteen (include/linux/jbd2.h).
	e := h.Field("h_err", 4)
	l.handle.bits = kernel.Field{Off: e.Off + 4, Size: 4}
	if err := h.Err(); err != nil {
		return nil, err
	}
	if l.handle.bits.Off+4 > h.Size {
		return nil, fmt.Errorf("struct jbd2_journal_handle: no flags behind h_err")
	}
	return l, nil
}

// holders returns the tasks that had a handle open in the journal. If a list of tasks does
// not check out, it returns those that were found with the error.
func (j *Journal) holders(c *pagecache.Cache) ([]Holder, error) {
	l, err := newTaskLayout(c)
	if err != nil {
		return nil, fmt.Errorf("find open handles: %w", err)
	}
	var out []Holder
	for task, err := range l.threads(c) {
		if err != nil {
			return out, fmt.Errorf("find open handles: %w", err)
		}
		b, err := c.Kernel().Bytes(task, l.task.size)
		if err != nil {
			return out, fmt.Errorf("find open handles: %w", err)
		}
		info := l.task.info.Pointer(b)
		if info == 0 {
			continue
		}
		// Other file systems keep other things in journal_info, and several file systems of
		// the ext family may be mounted: a handle is ours if its transaction is.
		handle, err := c.Kernel().Bytes(info, l.handle.size)
		if err != nil || !j.has(l.handle.transaction.Pointer(handle)) {
			continue
		}
		h := Holder{PID: int(l.task.pid.Uint(b)), Task: l.task.name.String(b), Operation: "unknown"}
		if kind := l.handle.bits.Uint(handle) >> 4 & 0xff; kind < uint64(len(operations)) {
			h.Operation = operations[kind]
		}
		out = append(out, h)
	}
	return out, nil
}

func (j *Journal) has(transaction addr.Virt) bool {
	return slices.ContainsFunc(j.unfinished(), func(t *Transaction) bool { return t.at == transaction })
}

// threads yields the task_struct of every thread.
func (l *taskLayout) threads(c *pagecache.Cache) iter.Seq2[addr.Virt, error] {
	return func(yield func(addr.Virt, error) bool) {
		first, err := c.Kernel().Symbol("init_task") // init/init_task.c
		if err != nil {
			yield(0, err)
			return
		}
		for at, err := range c.List(l.task.tasks.In(first)) {
			if err != nil {
				yield(0, err)
				return
			}
			signal, err := c.Kernel().Pointer(l.task.signal.In(at - addr.Virt(l.task.tasks.Off)))
			if err != nil {
				yield(0, err)
				return
			}
			for thread, err := range c.List(l.heads.In(signal)) {
				if !yield(thread-addr.Virt(l.task.thread.Off), err) || err != nil {
					return
				}
			}
		}
	}
}
