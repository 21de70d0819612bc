package salvage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/pagecache"
)

// btrfsSuper is what is read of a superblock of btrfs (include/uapi/linux/
// btrfs_tree.h, struct btrfs_super_block; least significant byte first).
type btrfsSuper struct {
	uuid                            pagecache.UUID
	generation                      uint64
	root, chunkRoot, logRoot        uint64
	devices                         uint64
	previousRoot, previousChunkRoot uint64            // of the generation before, if there is a backup of it
	roots                           map[uint64]uint64 // by generation: the current root and the backups
}

// btrfsSuperOffset is where the first superblock lies, in bytes
// (BTRFS_SUPER_INFO_OFFSET).
const btrfsSuperOffset = 64 << 10

var errNotBtrfs = errors.New("not a btrfs file system")

// The backups of the last four roots, in a superblock (struct btrfs_root_backup).
const (
	btrfsBackups    = 2859
	btrfsBackupSize = 168
	btrfsBackupNum  = 4
)

func parseBtrfsSuper(b []byte) (btrfsSuper, error) {
	var s btrfsSuper
	if len(b) < pagecache.BtrfsSuperSize || string(b[64:72]) != "_BHRfS_M" {
		return s, errNotBtrfs
	}
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	s.uuid = pagecache.UUID(b[32:48])
	s.generation, s.root, s.chunkRoot, s.logRoot, s.devices = u64(72), u64(80), u64(88), u64(96), u64(136)
	s.roots = map[uint64]uint64{s.generation: s.root}
	for n := range btrfsBackupNum {
		at := btrfsBackups + n*btrfsBackupSize
		s.roots[u64(at+8)] = u64(at)
		if u64(at+8)+1 == s.generation {
			s.previousRoot, s.previousChunkRoot = u64(at), u64(at+16)
		}
	}
	return s, nil
}

// checkBtrfs compares the superblock on a disk with the last one that the dead kernel
// wrote: transaction and trees must be the same. If the kernel did not know the last one to
// be on the disk, the disk may have the one before, with the log root of any fsync since. If
// an fsync was in flight, the disk may have the log root from before it.
func (p *Plan) checkBtrfs(disk io.ReaderAt) error {
	on, in, err := p.btrfsOn(disk)
	if err != nil {
		return err
	}
	const mounted = "the file system was mounted since the crash, or this is an older copy of it"
	if on.generation+1 == in.generation && in.previousRoot != 0 && p.btrfsCommitted < in.generation {
		in.generation, in.root, in.chunkRoot, in.logRoot = on.generation, in.previousRoot, in.previousChunkRoot, on.logRoot
	}
	if p.btrfsLogging {
		in.logRoot = on.logRoot
	}
	for _, f := range []struct {
		name, hint   string
		disk, memory any
	}{
		{"uuid", "this is another disk", on.uuid, p.Super.UUID},
		{"generation", mounted, on.generation, in.generation},
		{"root", mounted, on.root, in.root},
		{"chunk root", mounted, on.chunkRoot, in.chunkRoot},
		{"log root", mounted, on.logRoot, in.logRoot},
	} {
		if f.disk != f.memory {
			return &DiskError{Field: f.name, Disk: fmt.Sprint(f.disk), Memory: fmt.Sprint(f.memory), Hint: f.hint}
		}
	}
	return nil
}

// btrfsOn reads the superblock on a disk, and the one in memory.
func (p *Plan) btrfsOn(disk io.ReaderAt) (on, in btrfsSuper, err error) {
	b := make([]byte, pagecache.BtrfsSuperSize)
	if _, err := disk.ReadAt(b, btrfsSuperOffset); err != nil {
		return on, in, fmt.Errorf("check disk: read superblock: %w", err)
	}
	if on, err = parseBtrfsSuper(b); err != nil {
		return on, in, &DiskError{Field: "superblock", Disk: "missing", Memory: "present", Hint: "this is another disk, or its file system was overwritten"}
	}
	if in, err = parseBtrfsSuper(p.btrfsSuper); err != nil {
		return on, in, fmt.Errorf("check disk: superblock in memory: %w", err)
	}
	if on.devices != 1 {
		return on, in, fmt.Errorf("check disk: btrfs on %d devices: %w", on.devices, ErrUnsupported)
	}
	return on, in, nil
}

// descendsBtrfs checks that a disk that was mounted since has, among its backups, the
// last root that the dead kernel committed.
func (p *Plan) descendsBtrfs(disk io.ReaderAt) error {
	on, in, err := p.btrfsOn(disk)
	if err != nil {
		return err
	}
	if on.uuid != p.Super.UUID {
		return &DiskError{Field: "uuid", Disk: on.uuid.String(), Memory: p.Super.UUID.String(), Hint: "this is another disk"}
	}
	if root := in.roots[p.btrfsCommitted]; root != 0 && on.roots[p.btrfsCommitted] == root {
		return nil
	}
	return &DiskError{
		Field: "generation", Disk: fmt.Sprint(on.generation), Memory: fmt.Sprint(in.generation),
		Hint: "this is an older copy, or it has been mounted for more than a few commits (some minutes) since the crash",
	}
}
