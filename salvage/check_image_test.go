package salvage_test

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"understudy/internal/fixture"
	"understudy/pagecache"
	"understudy/salvage"
)

// patched is a disk with other bytes in some places.
type patched struct {
	io.ReaderAt
	at map[int64]byte
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	for at, v := range p.at {
		if at >= off && at < off+int64(n) {
			b[at-off] ^= v
		}
	}
	return n, err
}

// TestCheckLoose holds disks of XFS and btrfs against memory: as the crash left
// them, and with what another mount would change.
func TestCheckLoose(t *testing.T) {
	for _, kernel := range fixture.Kernels {
		if strings.HasPrefix(kernel, "5.10") {
			continue // which has no types of its modules
		}
		for _, name := range []string{"xfs", "btrfs"} {
			t.Run(kernel+" "+name, func(t *testing.T) {
				image := fixture.Get(t, fixture.Everything(kernel))
				c, err := pagecache.Open(openKernel(t, image))
				if err != nil {
					t.Fatal(err)
				}
				disk := image.Format(name)
				s, err := c.Superblock(uuidOf(t, disk))
				if err != nil {
					t.Fatal(err)
				}
				p, err := salvage.ForDisk(c, s, false)
				if err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(disk.Image)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				on, err := salvage.Identify(f)
				if err != nil || on.UUID != s.UUID || on.Family != name {
					t.Errorf("the disk is %+v, %v", on, err)
				}
				if err := errors.Join(p.Check(f), p.Descends(f)); err != nil {
					t.Error(err)
				}
				places := map[string]int64{"uuid": 32}
				if name == "btrfs" {
					places = map[string]int64{
						"superblock": 64<<10 + 64, "uuid": 64<<10 + 32, "generation": 64<<10 + 72, "root": 64<<10 + 80,
						"chunk root": 64<<10 + 88, "log root": 64<<10 + 96,
					}
				} else {
					places["superblock"] = 0
					places["last record of the log"] = lastHeader(t, f) + 32
				}
				for field, at := range places {
					var wrong *salvage.DiskError
					if err := p.Check(patched{f, map[int64]byte{at: 2}}); !errors.As(err, &wrong) || wrong.Field != field {
						t.Errorf("another %s: %v", field, err)
					}
					descends := p.Descends(patched{f, map[int64]byte{at: 2}})
					if later := field == "chunk root" || field == "log root"; (descends == nil) != later {
						t.Errorf("mounted since, and another %s: %v", field, descends)
					}
				}
			})
		}
	}
}

// lastHeader finds the header of the last record of an XFS log in a simple way.
func lastHeader(t *testing.T, disk io.ReaderAt) int64 {
	t.Helper()
	at, highest := int64(0), uint64(0)
	b := make([]byte, 512)
	for off := int64(0); ; off += 512 {
		if _, err := disk.ReadAt(b, off); err != nil {
			break
		}
		if lsn := binary.BigEndian.Uint64(b[16:]); binary.BigEndian.Uint32(b) == 0xfeedbabe && lsn >= highest {
			at, highest = off, lsn
		}
	}
	if at == 0 {
		t.Fatal("there is no log")
	}
	return at
}
