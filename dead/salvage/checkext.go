package salvage

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
)

// checkExt proves that a disk of the ext family is as the dead kernel left it: by its superblock,
// by how far its log goes, and by blocks that must be the same in memory and on the disk.
func (p *Plan) checkExt(disk io.ReaderAt) error {
	b := make([]byte, ext4.SuperSize)
	if _, err := disk.ReadAt(b, ext4.SuperOffset); err != nil {
		return fmt.Errorf("check disk: read superblock: %w", err)
	}
	on, err := ext4.ParseSuper(b)
	if errors.Is(err, ext4.ErrNotExt) {
		return &DiskError{Field: "superblock", Disk: "missing", Memory: "present", Hint: "this is another disk, or its file system was overwritten"}
	}
	if err != nil {
		return fmt.Errorf("check disk: %w", err)
	}
	if err := p.checkFields(&on); err != nil {
		return err
	}
	// If the disk itself is damaged, the last commit reports that, and is refused.
	now := &recovered{p: p, disk: disk}
	if now.fs, err = ext4.Open(disk); err != nil {
		return nil
	}
	if p.Ext4.Journal != nil {
		if err := now.openLog(disk); err != nil || now.log == nil {
			return err
		}
	}
	if p.Ext4.Journal != nil && p.Ext4.Journal.Aborted {
		return nil // the disk need not have what counts as committed in memory
	}
	return now.check()
}

// checkFields compares superblocks. The kernel writes its own bypassing the journal, so the
// disk has the one in memory or an earlier one; anybody else writes a later one.
func (p *Plan) checkFields(on *ext4.Super) error {
	in := &p.Ext4.Super
	if !p.Super.Had(on.UUID) {
		return &DiskError{Field: "uuid", Disk: on.UUID.String(), Memory: in.UUID.String(), Hint: "this is another disk"}
	}
	for _, f := range []struct {
		name, hint   string
		disk, memory any
	}{
		{"mount count", "the file system was mounted or checked since the crash", on.MountCount, in.MountCount},
		{"mount time", "the file system was mounted since the crash", on.MountTime, in.MountTime},
		{"time of the last check", "the file system was checked since the crash", on.CheckTime, in.CheckTime},
		{"time of the superblock", "the file system was checked, or changed by a tool, since the crash, or its kernel went on after memory was taken", max(on.WriteTime, in.WriteTime), in.WriteTime},
	} {
		if f.disk != f.memory {
			return &DiskError{Field: f.name, Disk: fmt.Sprint(f.disk), Memory: fmt.Sprint(f.memory), Hint: f.hint}
		}
	}
	return nil
}

// recovered is a disk as a recovery of its log would leave it.
type recovered struct {
	p      *Plan
	disk   io.ReaderAt
	fs     *ext4.FS
	log    *jbd2.Log // nil: there is none, or it cannot be read
	newest map[addr.Block]jbd2.LoggedBlock
}

// openLog reads the log, and checks that it goes as far as memory says.
func (r *recovered) openLog(disk io.ReaderAt) error {
	log, err := jbd2.Open(jbd2.NewRecording(disk))
	if err != nil {
		return nil
	}
	scan, err := log.Scan()
	if err != nil {
		return nil
	}
	if err := journal.Follows(r.p.Ext4.Journal, scan); err != nil {
		return &DiskError{
			Field: "log", Disk: fmt.Sprintf("at transaction %d", scan.Next),
			Memory: fmt.Sprintf("at transaction %d", r.p.Ext4.Journal.CommitSequence+1),
			Hint:   "it was mounted or checked since the crash, this is another copy of it, or its kernel went on after memory was taken",
		}
	}
	r.log, r.newest = log, make(map[addr.Block]jbd2.LoggedBlock)
	for _, b := range scan.Newest() {
		r.newest[b.Home] = b.LoggedBlock
	}
	return nil
}

func (r *recovered) block(b addr.Block) ([]byte, error) {
	if logged, ok := r.newest[b]; ok {
		return r.log.Read(logged)
	}
	return r.fs.Block(b)
}

const (
	// maxDescriptors bounds the blocks of group descriptors that are compared: those of
	// 2 TiB with blocks of 4 KiB.
	maxDescriptors = 256
	// maxCompared bounds the inodes whose blocks are compared, for those in the plan and for others each.
	maxCompared = 256
	// maxTorn is how many blocks may differ if operations were in flight and no
	// journal says what they were about to change: those of a group, of an inode, of its
	// directory, and of the groups of those blocks.
	maxTorn = 4
)

// check compares blocks that keep their place for as long as the file system exists, and of
// which memory had no change under way. Any change of a file system changes group descriptors;
// a change of a planned file changes its inode.
func (r *recovered) check() error {
	device, err := r.p.cache.Device(&r.p.Super, nil)
	if err != nil {
		return fmt.Errorf("check disk: %w", err)
	}
	torn := 0
	if r.log == nil {
		torn = r.torn()
	}
	size := int(r.fs.Super.BlockSize)
	for _, at := range r.sample() {
		memory, err := device.Settled(at, size)
		if err != nil {
			continue // a block that is not known to be the same proves nothing
		}
		there, err := r.block(at)
		if err != nil {
			return fmt.Errorf("check disk: %w", err)
		}
		if bytes.Equal(there, memory) {
			continue
		}
		if r.log != nil { // a rescue changes some of these blocks, where it gives files their places
			if rescued, err := journal.Rescued(r.p.cache, &r.p.Super, jbd2.NewRecording(r.disk)); err == nil && rescued {
				return nil
			}
		}
		if torn--; torn < 0 {
			return &DiskError{
				Field: fmt.Sprintf("metadata block %d", at), Disk: "different on the disk", Memory: "not being changed",
				Hint: "it was written to since the crash, this is another copy of it, or its kernel went on after memory was taken",
			}
		}
	}
	return nil
}

// torn returns how many blocks may differ without a journal: an operation changes a block in memory before it marks the buffer as dirty. An inode
// that is being evicted is in no list, and its directory is not locked any more; but the eviction is in flight.
func (r *recovered) torn() int {
	if n, err := r.p.cache.InFlight(&r.p.Super); err == nil && n > 0 {
		return maxTorn
	}
	for i, err := range r.p.cache.Inodes(&r.p.Super) {
		if err != nil || i.Writing || i.New {
			return maxTorn
		}
	}
	return 0
}

// sample returns the blocks of the group descriptors, and those with the inodes in the plan
// and with other inodes in memory.
func (r *recovered) sample() []addr.Block {
	var out []addr.Block
	seen := make(map[addr.Block]bool)
	add := func(b addr.Block) {
		if !seen[b] {
			seen[b] = true
			out = append(out, b)
		}
	}
	s := &r.fs.Super
	for group, n := uint64(0), 0; group < s.Groups() && n < maxDescriptors; n++ {
		at, _ := s.DescriptorLocation(uint32(group))
		add(at)
		group += uint64(s.BlockSize / uint32(s.DescSize))
	}
	inode := func(n addr.Ino) {
		group, block, _, err := s.InodeLocation(n)
		if err != nil {
			return
		}
		if g, err := r.fs.Group(group); err == nil {
			add(g.InodeTable + addr.Block(block))
		}
	}
	for i, f := range r.p.Files {
		if i == maxCompared {
			break
		}
		inode(f.Ino)
	}
	n := 0
	for i, err := range r.p.cache.Inodes(&r.p.Super) {
		if n++; n > maxCompared {
			break
		}
		if err == nil {
			inode(i.Ino)
		}
	}
	return out
}
