package pagecache

import (
	"errors"
	"testing"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// TestConfigurations uses the structures of real kernels of other configurations, as a compiler
// lays them out. It checks that all members that are read are found, and that locks say whether
// they are held, except spinlocks without SMP, of which nothing is left.
func TestConfigurations(t *testing.T) {
	for _, name := range fixture.Layouts {
		t.Run(name, func(t *testing.T) {
			m := kerneltest.New(t)
			m.Finish(fixture.Types(t, name)...)
			k, err := kernel.Find(m)
			if err != nil {
				t.Fatal(err)
			}
			l, err := newLayout(k)
			if err != nil {
				t.Fatal(err)
			}
			status, err1 := newStatusLayout(k)
			mapping, err2 := newMapLayout(k)
			xfs, err3 := newXFSLayout(k)
			_, err4 := newBtrfsLayout(k)
			if err := errors.Join(l.ext4Err, err1, err2, err3, err4); err != nil {
				t.Fatal(err)
			}
			if chunk := map[bool]int{false: 64, true: 16}[name == "small" || name == "debug"]; l.node.chunk != chunk {
				t.Errorf("a node has %d slots, not %d", l.node.chunk, chunk)
			}
			for what, lock := range map[string]struct {
				kernel.Lock
				spins bool
			}{
				"super_block.s_sync_lock":    {l.super.sync, false},
				"inode.i_rwsem":              {l.inode.rwsem, false},
				"ext4_inode_info.i_data_sem": {mapping.lock, false},
				"xfs_inode.i_lock":           {xfs.lock, false},
				"bdi_writeback.list_lock":    {l.bdi.lock, true},
				"ext4_inode_info.i_es_lock":  {status.lock, true},
			} {
				if lost := lock.spins && name == "small"; lock.Known() == lost {
					t.Errorf("%s: it says whether it is held: %v", what, !lost)
				}
			}
		})
	}
}
