package disk

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// tableSize is the size of the disks that are partitioned here, in bytes.
const tableSize = 64 << 20

// divided makes sfdisk(8) partition a disk by one of its scripts, and returns the image.
func divided(t testing.TB, script string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, tableSize)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/sbin/sfdisk", "-q", path)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("sfdisk: %v: %s (scripts/setup.sh installs fdisk)", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const mib = 1 << 20

var tables = []struct {
	name, script string
	want         []Partition
}{
	{"gpt", "label: gpt\nstart=2048, size=20480\nstart=65536, size=2048\n", []Partition{{1, mib, 10 * mib}, {2, 32 * mib, mib}}},
	{"gpt with gaps in its numbers", "label: gpt\n3: start=2048, size=20480\n", []Partition{{3, mib, 10 * mib}}},
	{"empty gpt", "label: gpt\n", nil},
	{"pc", "label: dos\nstart=2048, size=20480, bootable\nstart=65536, size=2048, type=82\n", []Partition{{1, mib, 10 * mib}, {2, 32 * mib, mib}}},
	{"logical", "label: dos\nstart=2048, size=2048\nstart=8192, size=100000, type=5\nstart=10240, size=2048\nstart=20480, size=4096\n",
		[]Partition{{1, mib, mib}, {5, 5 * mib, mib}, {6, 10 * mib, 2 * mib}}},
}

// TestTable: the tables that sfdisk makes are read with the partitions it was asked for.
func TestTable(t *testing.T) {
	for _, tt := range tables {
		t.Run(tt.name, func(t *testing.T) {
			b := divided(t, tt.script)
			got, err := Table(bytes.NewReader(b), int64(len(b)))
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

// TestTableRefused: what is not a table, or contradicts itself, is refused.
func TestTableRefused(t *testing.T) {
	gpt, pc := divided(t, tables[0].script), divided(t, tables[3].script)
	for _, tt := range []struct {
		name, want string
		b          []byte
		at         int
		with       []byte
	}{
		{"nothing", ErrNoTable.Error(), make([]byte, tableSize), 0, nil},
		{"a boot sector", ErrNoTable.Error(), make([]byte, tableSize), 510, []byte{0x55, 0xaa}},
		{"code in the table", ErrNoTable.Error(), pc, 446, []byte{0x33}},
		{"a damaged header", "checksum of its GPT header", gpt, 512 + 40, []byte{1}},
		{"no header", "missing or damaged", gpt, 512, []byte{0}},
		{"damaged entries", "checksum of its GPT entries", gpt, 1024 + 33, []byte{1}},
		{"beyond the end", "of a disk with", pc, 446 + 12, []byte{0, 0, 0, 1}},
		{"overlapping", "overlap", pc, 446 + 12, []byte{0, 0, 1, 0}},
		{"an endless chain", "chain of logical partitions", endless(divided(t, tables[4].script)), 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := bytes.Clone(tt.b)
			copy(b[tt.at:], tt.with)
			if _, err := Table(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Find(bytes.NewReader(gpt), tableSize, 3); err == nil || !strings.Contains(err.Error(), "which has 1, 2") {
		t.Error(err)
	}
}

// endless makes the first link of a chain empty, and makes it lead to itself.
func endless(b []byte) []byte {
	const first = 8192 * sector
	copy(b[first+446:], make([]byte, 32))
	b[first+446+4], b[first+446+12] = 5, 1
	return b
}

// FuzzTable: whatever is on a disk, its table is refused, or has partitions that lie on the disk and
// do not overlap.
func FuzzTable(f *testing.F) {
	for _, tt := range tables {
		f.Add(divided(f, tt.script)[:8<<10])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		disk := make([]byte, max(len(b), 64<<10))
		copy(disk, b)
		parts, err := Table(bytes.NewReader(disk), int64(len(disk)))
		if err != nil {
			return
		}
		for i, p := range parts {
			if p.Number < 1 || p.Off <= 0 || p.Len <= 0 || p.Off+p.Len > int64(len(disk)) || p.Off%sector != 0 || p.Len%sector != 0 {
				t.Errorf("%+v of a disk of %d bytes", p, len(disk))
			}
			for _, q := range parts[:i] {
				if p.Off < q.Off+q.Len && q.Off < p.Off+p.Len {
					t.Errorf("%+v and %+v", p, q)
				}
			}
		}
	})
}
