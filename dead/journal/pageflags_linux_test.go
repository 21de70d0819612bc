package journal_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestLostFlags clears flags of the last page of an overwritten file, in each combination, while the file's tree of pages
// still says that the page is dirty. The file then counts as whole with the content of that page, or not at all.
func TestLostFlags(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	d := image.Disks[0]
	disk := openDisk(t, d.Image)
	mem := &damaged{Memory: openCache(t, image).Kernel().Memory()}
	c := cacheOf(t, mem)
	s := superOf(t, c, d)
	dev, err := c.Device(s, disk)
	if err != nil {
		t.Fatal(err)
	}
	var page addr.Phys
	for i, err := range c.Dirty(s) {
		if err != nil || !i.Regular() || i.Size < 2*addr.PageSize {
			continue
		}
		blocks, err := dev.UnsavedBlocks(i)
		if err != nil || len(blocks) != 1 || !blocks[0].Mapped || blocks[0].Len() < i.Size {
			continue
		}
		last := blocks[0].Phys + addr.Phys(blocks[0].Len()) - 1
		if page, err = c.Kernel().Physical(c.Kernel().PageStruct(addr.PFN(last / addr.PageSize))); err != nil {
			t.Fatal(err)
		}
		break
	}
	if page == 0 {
		t.Fatal("no file of some pages was overwritten")
	}
	var bits []uint64
	for _, name := range []string{"PG_uptodate", "PG_dirty", "PG_private"} {
		n, err := c.Kernel().Types().Enum("pageflags", name)
		if err != nil {
			t.Fatal(err)
		}
		bits = append(bits, 1<<n)
	}
	j := newFiles(t, image.Files(d.Name), disk)
	for lost := range 1 << len(bits) {
		mem.pages = make(map[addr.Phys][]byte)
		flags := binary.LittleEndian.Uint64(mem.view(page, 8))
		was := flags
		for n, bit := range bits {
			if lost>>n&1 == 1 {
				flags &^= bit
			}
		}
		if lost > 0 && flags == was {
			t.Fatalf("the page has flags %#x", was)
		}
		mem.put(page, binary.LittleEndian.AppendUint64(nil, flags))
		t.Run(fmt.Sprintf("%#x", was&^flags), func(t *testing.T) {
			var o outcomes
			found, err := j.judge(c, s.UUID, disk, &o)
			if len(found) > 0 || err != nil {
				t.Errorf("%v; %v", errors.Join(found...), err)
			}
			t.Logf("%d files have places", o.placed)
		})
	}
}
