package journal

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// writeLocked is memory in which a rw_semaphore is held for writing.
type writeLocked struct {
	ram.Memory
	at addr.Phys
}

func (w *writeLocked) View(pa addr.Phys, n int) ([]byte, error) {
	b, err := w.Memory.View(pa, n)
	if err == nil && w.at != 0 && w.at >= pa && w.at+8 <= pa+addr.Phys(n) {
		b = append([]byte(nil), b...)
		binary.LittleEndian.PutUint64(b[w.at-pa:], 1) // RWSEM_WRITER_LOCKED (kernel/locking/rwsem.c)
	}
	return b, err
}

// TestFreedMidUpdate makes the extent tree of a file mid-update, and its mapping unreadable: the commit is refused, but not if the
// file was being deleted, and was freed when that was completed. Its blocks may have been allocated for its last data at that time.
func TestFreedMidUpdate(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	file, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	mem := &writeLocked{Memory: file}
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	id, err := addr.ParseUUID(image.Format("ext4").UUID)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.Open(image.Format("ext4").Image)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	r, err := Plan(c, s, readOnly{disk})
	if err != nil {
		t.Fatal(err)
	}
	var some *pagecache.Inode // any file with content
	for i, err := range c.Inodes(s) {
		if err == nil && i.Regular() && !i.Deleted() && i.Size > 0 && i.Ino >= firstInode {
			some = i
			break
		}
	}
	info := c.Layout("ext4_inode_info", "ext4")
	lock := some.Addr + addr.Virt(info.Field("i_data_sem.count.counter", 8).Off-info.Field("vfs_inode").Off)
	if err := info.Err(); err != nil {
		t.Fatal(err)
	}
	if mem.at, err = k.Physical(lock); err != nil {
		t.Fatal(err)
	}
	unreadable := func(addr.Ino) (*audit.Trees, error) { return nil, errors.New("inode is free") }
	for _, freed := range []bool{false, true} {
		f := r.finisher(readOnly{disk}, &Report{})
		if freed {
			f.report.Gone = map[addr.Ino]struct{}{some.Ino: {}}
		}
		err := f.midUpdate(unreadable, false)
		after := f.report.AfterMount
		if err != nil || (len(after) == 0) != freed {
			t.Errorf("freed: %v; %v, %d files to be brought back", freed, err, len(after))
		}
	}
}

// readOnly is a disk that takes no writes.
type readOnly struct{ *os.File }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, errDisk }
