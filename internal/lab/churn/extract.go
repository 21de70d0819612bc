//go:build linux

package churn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// extract replays the journal of a disk, and returns the blocks that the committing and
// the running transaction in the dead memory change.
func extract(path, image string) (*State, error) {
	mem, err := ram.OpenFile(path)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	k, err := kernel.Find(mem)
	if err != nil {
		return nil, err
	}
	c, err := pagecache.Open(k)
	if err != nil {
		return nil, err
	}
	disk, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	fs, err := ext4.Open(disk)
	if err != nil {
		return nil, err
	}
	s, err := c.Superblock(fs.Super.UUID)
	if err != nil {
		return nil, err
	}
	dev, err := c.Device(s, disk)
	if err != nil {
		return nil, err
	}
	j, err := journal.Of(c, s, dev)
	if err != nil {
		return nil, err
	}
	log, err := jbd2.Open(disk)
	if err != nil {
		return nil, err
	}
	if _, err := log.Replay(); err != nil {
		return nil, err
	}
	out := &State{Changed: make(map[addr.Block][]byte), Handles: j.Updates()}
	for _, t := range []*journal.Transaction{j.Committing, j.Running} {
		if t == nil {
			continue
		}
		for _, b := range t.Buffers {
			out.Changed[b.Block] = bytes.Clone(b.Data)
			if b.Trigger {
				if err := seal(fs, b.Block, out.Changed[b.Block]); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, nil
}

// seal sets the checksum of a block of the orphan file, as the kernel does at
// commit (fs/ext4/orphan.c, ext4_orphan_file_block_trigger).
func seal(fs *ext4.FS, n addr.Block, b []byte) error {
	at := len(b) - 8
	if binary.LittleEndian.Uint32(b[at:]) != 0x0b10ca04 {
		return errors.New("a block with an unknown trigger")
	}
	inode, err := fs.Inode(fs.Super.OrphanFile)
	if err != nil {
		return fmt.Errorf("orphan file: %w", err)
	}
	sum := ext4.CRC32C(inode.Seed, binary.LittleEndian.AppendUint64(nil, uint64(n)))
	binary.LittleEndian.PutUint32(b[at+4:], ext4.CRC32C(sum, b[:at]))
	return nil
}
