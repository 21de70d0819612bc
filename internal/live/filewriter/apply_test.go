package filewriter

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// bench is a directory of an ext file system, with a staging file beside it.
type bench struct {
	t       *testing.T
	dir     string
	staging *os.File
	data    []byte
}

const extMagic = 0xef53

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 || st.Type != extMagic {
		t.Skipf("not root, or %s is not on an ext file system (type %#x): files are opened by its handles", dir, st.Type)
	}
	b := &bench{t: t, dir: dir, data: make([]byte, 8<<20)}
	for i := range b.data {
		b.data[i] = byte(rand.Uint32())
	}
	path := filepath.Join(t.TempDir(), "staging")
	if err := os.WriteFile(path, b.data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b.staging = f
	return b
}

func (b *bench) apply(files ...wire.File) wire.ApplyResult {
	b.t.Helper()
	mount, err := os.Open(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	defer mount.Close()
	w := &writer{mount: int(mount.Fd()), staging: int(b.staging.Fd())}
	if err := w.writeAll(files, nil); err != nil {
		b.t.Fatal(err)
	}
	var r wire.ApplyResult
	for i := range w.targets {
		w.targets[i].report(&r)
	}
	return r
}

// file makes a file of size times x, and the plan's view of it.
func (b *bench) file(name string, size int) (string, wire.File) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	f, err := newFile(path, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
		b.t.Fatal(err)
	}
	f.Mtime, f.Atime = wire.Time{Sec: 1e9, Nsec: 123456789}, wire.Time{Sec: 2e9}
	return path, f
}

// model is what a file must hold once a plan was applied to it.
func (b *bench) model(before int, f wire.File) []byte {
	m := bytes.Repeat([]byte("x"), before)
	grow := func(n int64) {
		if int64(len(m)) < n {
			m = append(m, make([]byte, n-int64(len(m)))...)
		}
	}
	for _, r := range f.Runs {
		grow(r.Off + r.Len)
		copy(m[r.Off:r.Off+r.Len], b.data[r.Staged:])
	}
	grow(f.Size)
	for _, h := range f.Holes {
		clear(m[min(h.Off, f.Size):min(h.Off+h.Len, f.Size)])
	}
	return m[:f.Size]
}

func TestApplyFiles(t *testing.T) {
	b := newBench(t)
	tests := []struct {
		name   string
		before int
		size   int64
		runs   []wire.Run
		holes  []wire.Range
	}{
		{"overwritten", 20000, 20000, []wire.Run{{Off: 4096, Len: 8192, Staged: 4096}}, nil},
		{"appended", 5000, 9000, []wire.Run{{Off: 4096, Len: 4904, Staged: 16384}}, nil},
		{"appended, rounded up", 5000, 9000, []wire.Run{{Off: 4096, Len: 8192, Staged: 16384}}, nil},
		{"last page overwritten", 5000, 5000, []wire.Run{{Off: 4096, Len: 4096, Staged: 0}}, nil},
		{"one byte", 0, 1, []wire.Run{{Off: 0, Len: 4096, Staged: 8192}}, nil},
		{"sparse", 10, 1 << 26, []wire.Run{{Off: 1<<26 - 4096, Len: 4096, Staged: 40960}}, nil},
		{"larger than a chunk", 0, 3<<20 + 5, []wire.Run{{Off: 0, Len: 3<<20 + 4096, Staged: 65536}}, nil},
		{"blocks of 1 KiB", 8192, 8192, []wire.Run{{Off: 1024, Len: 1024, Staged: 512}, {Off: 5120, Len: 2048, Staged: 4096}}, nil},
		{"shrunk", 20000, 100, nil, nil},
		{"shrunk and written", 20000, 4100, []wire.Run{{Off: 4096, Len: 4096, Staged: 4096}}, nil},
		{"times only", 10, 10, nil, nil},
		{"extended with a hole", 10, 10000, nil, nil},
		{"with holes", 40000, 40000, []wire.Run{{Off: 4096, Len: 4096}}, []wire.Range{{Off: 0, Len: 4096}, {Off: 12288, Len: 8192}}},
		{"holes to its end and beyond", 40000, 30000, nil, []wire.Range{{Off: 28672, Len: 1328}, {Off: 32768, Len: 4096}}},
		{"a hole beyond its end, written", 100, 30000, []wire.Run{{Off: 0, Len: 4096}}, []wire.Range{{Off: 4096, Len: 1 << 40}}},
	}
	var files []wire.File
	var paths []string
	for _, tt := range tests {
		path, f := b.file(tt.name, tt.before)
		f.Size, f.Runs, f.Holes = tt.size, tt.runs, tt.holes
		files, paths = append(files, f), append(paths, path)
	}
	r := b.apply(files...)
	if len(r.Failures) > 0 || r.Files != len(tests) {
		t.Fatalf("result %+v", r)
	}
	for i, tt := range tests {
		got, err := os.ReadFile(paths[i])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, b.model(tt.before, files[i])) {
			t.Errorf("%s: wrong content, %d bytes of %d", tt.name, len(got), tt.size)
		}
		st, err := os.Stat(paths[i])
		if err != nil {
			t.Fatal(err)
		}
		if want := time.Unix(1e9, 123456789); !st.ModTime().Equal(want) {
			t.Errorf("%s: mtime %v, want %v", tt.name, st.ModTime(), want)
		}
	}
}

// TestApplySectors: a device's sectors may be as large as a page, and the size of a file need not be a
// multiple of them.
func TestApplySectors(t *testing.T) {
	b := newBench(t)
	b.dir = mountSectors(t)
	var files []wire.File
	var paths []string
	for _, size := range []int64{512, 1536, 4096, 10240, 10241, chunk + 512} {
		for _, before := range []int{0, 20000} {
			path, f := b.file(fmt.Sprintf("%d from %d", size, before), before)
			f.Size, f.Runs = size, []wire.Run{{Len: size, Staged: 4096}}
			files, paths = append(files, f), append(paths, path)
		}
	}
	if r := b.apply(files...); len(r.Failures) > 0 {
		t.Errorf("result %+v", r)
	}
	for i, path := range paths {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b.model(0, files[i])) {
			t.Errorf("%s: wrong content, %d bytes: %v", filepath.Base(path), len(got), err)
		}
	}
}

// mountSectors mounts an ext4 on a device with sectors of 4096 bytes.
func mountSectors(t *testing.T) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", "4096", image).Output()
	if err != nil {
		t.Skipf("losetup: %v: no loop devices here", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", device, err, out)
		}
	})
	if out, err := exec.Command("mkfs.ext4", "-q", device).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	if err := unix.Mount(device, dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestApplyCuts: blocks beyond the end of a file are freed if the plan says so.
func TestApplyCuts(t *testing.T) {
	b := newBench(t)
	for _, cut := range []bool{false, true} {
		path, f := b.file(fmt.Sprint(cut), 5000)
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20)
			unix.Close(fd)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Size, f.Cut = 5000, cut
		if r := b.apply(f); len(r.Failures) > 0 {
			t.Fatalf("result %+v", r)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if left := st.Blocks*512 > 65536; left == cut || st.Size != 5000 {
			t.Errorf("cut: %v; %d bytes in %d sectors", cut, st.Size, st.Blocks)
		}
	}
}

// TestApplyLeavesNoTraces: flags that forbid writing and capabilities are as
// they were, also of a file that could not be given its size.
func TestApplyLeavesNoTraces(t *testing.T) {
	b := newBench(t)
	for name, flag := range map[string]uint32{"immutable": 0x8, "append only": 0x10, "immutable, failed": 0x8} {
		path, f := b.file(name, 4096)
		f.Size, f.Runs = 4096, []wire.Run{{Len: 4096}}
		fails := strings.HasSuffix(name, "failed")
		if fails {
			f.Size = 1 << 60 // no file system of the ext family has such files
		}
		capability := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
		if err := unix.Setxattr(path, capabilityName, capability, 0); err != nil {
			t.Fatal(err)
		}
		setFileFlags(t, path, flag, true)
		defer setFileFlags(t, path, flag, false)
		if r := b.apply(f); len(r.Failures) > 0 != fails {
			t.Fatalf("%s: %+v", name, r)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, b.data[:4096]) {
			t.Errorf("%s: not written: %v", name, err)
		}
		value := make([]byte, 64)
		if n, err := unix.Getxattr(path, capabilityName, value); err != nil || !bytes.Equal(value[:n], capability) {
			t.Errorf("%s: capabilities %x, %v", name, value[:max(n, 0)], err)
		}
		if err := os.WriteFile(path, nil, 0o600); err == nil {
			t.Errorf("%s: the flag is gone", name)
		}
	}
}

func setFileFlags(t *testing.T, path string, flag uint32, on bool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	now, err := readSettings(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	want := now
	if want.flags &^= flag; on {
		want.flags |= flag
	}
	if err := want.setTo(int(f.Fd()), now); err != nil {
		t.Fatal(err)
	}
}

// TestApplyRefusesStrangers: if an inode number is that of another file by now,
// that file is left alone.
func TestApplyRefusesStrangers(t *testing.T) {
	b := newBench(t)
	path, f := b.file("stranger", 4096)
	f.Generation++
	f.Size, f.Runs = 4096, []wire.Run{{Len: 4096}}
	r := b.apply(f, wire.File{Inode: 1 << 40, Size: 1})
	if r.Files != 0 || len(r.Failures) != 2 || !strings.Contains(r.Failures[0].Reason, "not committed") {
		t.Errorf("result %+v", r)
	}
	if got, err := os.ReadFile(path); err != nil || bytes.Trim(got, "x") != nil && len(bytes.Trim(got, "x")) > 0 {
		t.Errorf("a file of another generation was written: %v", err)
	}
}

func TestGatherFillsBuffers(t *testing.T) {
	target := &target{file: wire.File{Runs: []wire.Run{{Off: 0, Len: 3*chunk + 1, Staged: 4 * chunk}, {Off: 1 << 30, Len: 512, Staged: 0}}}}
	batches := gather(target.cut(nil))
	var total int64
	for _, b := range batches {
		if b.end-b.start > chunk || b.start%sector != 0 || b.end%sector != 0 {
			t.Errorf("batch from %d to %d does not fit in a buffer", b.start, b.end)
		}
		for _, p := range b.pieces {
			total += p.len
			if p.staged < b.start || p.staged+p.len > b.end {
				t.Errorf("piece %+v is not in its batch", p)
			}
		}
	}
	if total != 3*chunk+1+512 {
		t.Errorf("%d bytes in batches", total)
	}
}
