package placement_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/placement"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestInterrupted places files in file systems of many kinds, data for free blocks first, and
// cuts the work off at each of its writes, with the writes that were not synced lost or kept in any
// mixture. After an ordinary recovery, the metadata must be the old or the new one, and every
// block that was in use must be unchanged, unless data goes to it in place. Carried out again
// from there, the placement must be complete. File systems without a journal are left out: there
// placement counts only as a whole (package offline).
func TestInterrupted(t *testing.T) {
	for n, kind := range kinds {
		if kind.name == "no journal" || kind.name == "ext2" {
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			if !slices.Contains([]string{"bigalloc", "inline", "quota", "ext4-1k"}, kind.name) {
				tier.Full(t, "places interrupted in a file system of kind "+kind.name)
			}
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(n), 17))
			d := makeDisk(t, kind.options, kind.size, rng)
			var files []placement.File
			for _, ino := range slices.Sorted(maps.Keys(d.files)) {
				files = append(files, d.request(rng, ino, 1<<18))
			}
			c := &cuts{disk: d, base: d.image, files: files}
			c.run(rng)
		})
	}
}

// cuts are the cuts of one rescue.
type cuts struct {
	*disk
	base   []byte // the disk before it
	files  []placement.File
	result *placement.Result
	whole  *jbd2.Recording
}

// carryOut places all files on a disk, and returns what was placed.
func (c *cuts) carryOut(out *jbd2.Recording) *placement.Result {
	c.t.Helper()
	log, err := jbd2.Open(out)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := log.Replay(); err != nil {
		c.t.Fatal(err)
	}
	scan, err := log.Scan()
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := placement.Place(out, nil, c.files, nil)
	if err != nil || len(r.Refused) > 0 {
		c.t.Fatal(r, err)
	}
	for _, free := range []bool{true, false} {
		c.data(out, r, free)
	}
	if len(r.Blocks) == 0 {
		return r // an earlier run did it
	}
	t := &jbd2.Transaction{Time: time.Unix(1_700_000_000, 0)}
	for _, home := range slices.Sorted(maps.Keys(r.Blocks)) {
		t.Blocks = append(t.Blocks, jbd2.Block{Home: home, Data: r.Blocks[home]})
	}
	pending, err := log.Append(jbd2.Start{Block: scan.End, Sequence: scan.Next}, t)
	if err == nil {
		err = pending.Commit()
	}
	if err == nil {
		_, err = log.Replay()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// data writes and syncs the data that goes to free blocks, or the other data.
func (c *cuts) data(out *jbd2.Recording, r *placement.Result, free bool) {
	c.t.Helper()
	var err error
	for _, p := range r.Placed {
		content := append(slices.Clone(c.disk.files[p.File.Ino]), make([]byte, c.fs.Super.BlockSize)...)
		for _, piece := range p.Pieces {
			if piece.Free == free {
				_, werr := out.WriteAt(content[piece.Off:piece.End], piece.Disk)
				err = errors.Join(err, werr)
			}
		}
	}
	if err = errors.Join(err, out.Sync()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cuts) run(rng *rand.Rand) {
	t := c.t
	c.whole = jbd2.NewRecording(bytes.NewReader(c.base))
	c.result = c.carryOut(c.whole)
	free := 0
	for _, p := range c.result.Placed {
		for _, piece := range p.Pieces {
			if piece.Free {
				free++
			}
		}
	}
	kept := c.inUse()
	metadata := make(map[addr.Block]struct{})
	for home := range c.result.Blocks {
		metadata[home] = struct{}{}
	}
	old, all, again, ops := 0, 0, 0, len(c.whole.Ops())
	for cut := 0; cut <= ops; cut++ {
		for try := range 3 {
			crashed := c.whole.Crash(cut, func(int) bool { return try == 0 || try == 1 && rng.IntN(2) == 0 })
			got := c.recover(crashed)
			switch {
			case c.same(got, c.whole, metadata):
				all++
			case c.same(got, bytes.NewReader(c.base), metadata):
				if old++; !c.same(got, bytes.NewReader(c.base), kept) {
					t.Fatalf("cut at write %d of %d, try %d: a block that is in use has changed", cut, ops, try)
				}
			default:
				t.Fatalf("cut at write %d of %d, try %d: neither the old state nor the new one", cut, ops, try)
			}
			if (cut+try)%41 != 0 && cut < ops-6 {
				continue
			}
			again++
			c.carryOut(crashed)
			c.check(crashed)
		}
	}
	t.Logf("%d pieces in free blocks; %d writes and syncs: %d times the old state, %d times the new one; carried out again %d times", free, ops, old, all, again)
	if free == 0 || old == 0 || all == 0 || again == 0 {
		t.Error("the cuts did not show all of it")
	}
}

// inUse returns the blocks in use before a rescue, except those that data goes to in place, the
// log, and the superblock.
func (c *cuts) inUse() map[addr.Block]struct{} {
	c.t.Helper()
	log, err := jbd2.Open(jbd2.NewRecording(bytes.NewReader(c.base)))
	if err != nil {
		c.t.Fatal(err)
	}
	fs, size := log.FS, int64(c.fs.Super.BlockSize)
	out := make(map[addr.Block]struct{})
	home, _ := fs.Super.Location()
	for b := home + 1; b < addr.Block(fs.Super.Blocks); b++ {
		if !log.Contains(b) && used(c.t.(*testing.T), fs, uint64(b)) {
			out[b] = struct{}{}
		}
	}
	for _, p := range c.result.Placed {
		for _, piece := range p.Pieces {
			for at := piece.Disk; at < piece.Disk+piece.Len(); at += size {
				if _, was := out[addr.Block(at/size)]; was && piece.Free {
					c.t.Fatalf("block %d is in use, and said to be free", at/size)
				}
				delete(out, addr.Block(at/size))
			}
		}
	}
	return out
}

// recover carries out an ordinary journal recovery.
func (c *cuts) recover(crashed *jbd2.Recording) *jbd2.Recording {
	c.t.Helper()
	out := jbd2.NewRecording(crashed)
	log, err := jbd2.Open(out)
	if err == nil && !log.Super.Empty() {
		_, err = log.Replay()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// same compares blocks of two disks, except that of the superblock.
func (c *cuts) same(a *jbd2.Recording, b io.ReaderAt, blocks map[addr.Block]struct{}) bool {
	c.t.Helper()
	size := int64(c.fs.Super.BlockSize)
	super, _ := c.fs.Super.Location()
	one, other := make([]byte, size), make([]byte, size)
	for home := range blocks {
		_, err := a.ReadAt(one, int64(home)*size)
		_, err2 := b.ReadAt(other, int64(home)*size)
		if err := errors.Join(err, err2); err != nil {
			c.t.Fatal(err)
		}
		if home != super && !bytes.Equal(one, other) {
			return false
		}
	}
	return true
}

// check checks a disk with e2fsck and debugfs.
func (c *cuts) check(out *jbd2.Recording) {
	c.t.Helper()
	c.image = make([]byte, len(c.base))
	if _, err := out.ReadAt(c.image, 0); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.path, c.image, 0o600); err != nil {
		c.t.Fatal(err)
	}
	var err error
	if c.fs, err = ext4.Open(bytes.NewReader(c.image)); err != nil {
		c.t.Fatal(err)
	}
	c.fsck()
	c.compare()
}
