package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// imageOf makes a qcow2 image of 8 MiB with random bytes in the middle, and returns them with their offset.
func imageOf(t *testing.T, dir string) (path string, content []byte, off int64) {
	t.Helper()
	for _, p := range []string{"qemu-img", daemonName} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
	content, off = make([]byte, 1<<20), 3<<20
	rand.NewChaCha8([32]byte{}).Read(content)
	raw := filepath.Join(dir, "raw")
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(content, off)
	if err = errors.Join(err, f.Truncate(8<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "an image, of a \"disk\"")
	tool(t, "convert", "-O", "qcow2", raw, path)
	return path, content, off
}

func tool(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return string(out)
}

// TestOpen: what an image has is in the file; what is written to the file is in the image, and what is synced is even if
// this process is killed; others are kept from writing meanwhile, and nothing is left behind.
func TestOpen(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	path, content, off := imageOf(t, dir)
	if is, err := Is(path); !is || err != nil {
		t.Fatalf("it is no qcow2 image: %v", err)
	}
	d, err := Open(path, true, nil)
	if err != nil {
		t.Skip(err) // there is no FUSE here
	}
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8<<20)
	want := make([]byte, 8<<20)
	copy(want[off:], content)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("it has other bytes: %v", err)
	}
	if size, err := f.Seek(0, io.SeekEnd); err != nil || size != 8<<20 {
		t.Errorf("it has %d bytes, %v", size, err)
	}
	if other, err := Open(path, true, nil); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("opened twice: %v, %v", other, err)
	}
	reader, err := Open(path, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(reader.Path); err != nil || !bytes.Equal(b, want) {
		t.Errorf("read meanwhile: %v", err)
	}
	if err := os.WriteFile(reader.Path, []byte("x"), 0); err == nil {
		t.Error("what is only read can be written to")
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	copy(want[6<<20:], content[:70000])
	_, err = f.WriteAt(content[:70000], 6<<20)
	if err = errors.Join(err, f.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(dir, "raw")
	tool(t, "check", path)
	tool(t, "convert", "-O", "raw", path, raw)
	if b, err := os.ReadFile(raw); err != nil || !bytes.Equal(b, want) {
		t.Errorf("the image has other bytes: %v", err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestKilled: if this process is killed, the daemon writes what it has and ends.
func TestKilled(t *testing.T) {
	if path := os.Getenv("UNDERSTUDY_QCOW2"); path != "" {
		d, err := Open(path, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".shown", []byte(d.Path), 0o600); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	dir := t.TempDir()
	path, content, _ := imageOf(t, dir)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilled$")
	cmd.Env = append(os.Environ(), "UNDERSTUDY_QCOW2="+path, "TMPDIR="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	var shown []byte
	for len(shown) == 0 {
		select {
		case <-ended:
			t.Skip("there is no FUSE here")
		case <-time.After(10 * time.Millisecond):
			shown, _ = os.ReadFile(path + ".shown") // it is not there yet
		}
	}
	f, err := os.OpenFile(string(shown), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(content, 0)
	if err = errors.Join(err, f.Close(), cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	<-ended
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		d, err := Open(path, true, nil)
		if err == nil {
			b, err := os.ReadFile(d.Path)
			if err = errors.Join(err, d.Close()); err != nil || !bytes.Equal(b[:len(content)], content) {
				t.Errorf("%v: what was written is not there", err)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(string(shown), &st); err != nil || st.Type == unix.FUSE_SUPER_MAGIC {
		t.Errorf("it is still mounted: %v", err)
	}
}

// header is a header of version 3 without anything special.
func header() []byte {
	b := make([]byte, headerLen)
	copy(b, Magic)
	binary.BigEndian.PutUint32(b[atVersion:], newV3)
	return b
}

// TestChain: an image that is not all that there is of its disk, or that is damaged, is refused.
func TestChain(t *testing.T) {
	with := func(at int, v byte) []byte { b := header(); b[at] = v; return b }
	for _, tt := range []struct {
		name   string
		header []byte
		want   string // empty if it is good
	}{
		{"plain", header(), ""},
		{"version 2", with(atVersion+3, 2), ""},
		{"version 4", with(atVersion+3, 4), "version 4"},
		{"encrypted", with(atCrypt+3, 2), "encrypted"},
		{"dirty", with(atFeatures+7, dirtyBit), ""},
		{"corrupt", with(atFeatures+7, corruptBit), "marked as corrupt"},
		{"external data", with(atFeatures+7, externalBit), "external data file"},
		{"something new", with(atFeatures, 1), "unknown features: 0x100000000000000"},
	} {
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, tt.header, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := chain(path, nil); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte(Magic), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := chain(short, nil); err == nil {
		t.Error("a header that is cut off is good")
	}
}

// TestBacking: a backing file is opened only if it was named, and if the image says which format it has.
func TestBacking(t *testing.T) {
	dir := t.TempDir()
	base, content, off := imageOf(t, dir)
	middle, top := filepath.Join(dir, "middle"), filepath.Join(dir, "top")
	tool(t, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, middle)
	tool(t, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "middle", top)
	for _, backing := range [][]string{nil, {middle}, {base}, {top, filepath.Join(dir, "raw")}} {
		if d, err := Open(top, true, backing); err == nil || !strings.Contains(err.Error(), "say --backing "+dir) {
			t.Errorf("with %q: %v, %v", backing, d, err)
		}
	}
	d, err := Open(top, true, []string{base, middle})
	if err != nil {
		t.Skip(err)
	}
	b, err := os.ReadFile(d.Path)
	if err != nil || !bytes.Equal(b[off:][:len(content)], content) {
		t.Errorf("it has other bytes: %v", err)
	}
	f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	before := tool(t, "info", "-U", base)
	_, err = f.WriteAt([]byte("new"), off)
	if err = errors.Join(err, f.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if tool(t, "info", base) != before {
		t.Error("the backing file has changed")
	}
	tool(t, "convert", "-O", "raw", top, filepath.Join(dir, "raw"))
	if b, err := os.ReadFile(filepath.Join(dir, "raw")); err != nil || string(b[off:off+3]) != "new" || !bytes.Equal(b[off+3:][:100], content[3:103]) {
		t.Errorf("the image has other bytes: %v", err)
	}
	for _, args := range [][]string{
		{"-F", "vmdk", "-b", "json:{}", "is no local file"}, {"-F", "raw", "-b", "nbd://host/x", "is no local file"}, {"-F", "vdi", "-b", base, "not supported"},
	} {
		odd := filepath.Join(dir, "odd")
		tool(t, append(append([]string{"create", "-q", "-u", "-f", "qcow2"}, args[:4]...), odd, "8M")...)
		if _, err := chain(odd, []string{base}); err == nil || !strings.Contains(err.Error(), args[4]) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// FuzzHeader: of no image that refers to another file the reader says that it does not, whatever else its header says.
func FuzzHeader(f *testing.F) {
	f.Add(header())
	backed := append(header(), make([]byte, 200)...)
	backed[atBacking+7], backed[atBacking+11], backed[atHeaderLen+3] = 150, 5, headerLen
	copy(backed[headerLen:], "\xe2\x79\x2a\xca\x00\x00\x00\x03raw")
	copy(backed[150:], "/base")
	f.Add(backed)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append(b, make([]byte, headerLen)...)
		if check(b) != nil {
			return
		}
		name, format, err := backingOf(b, bytes.NewReader(b))
		if err == nil && (name == "") != (binary.BigEndian.Uint64(b[atBacking:]) == 0) || name != "" && format != "raw" && format != Format && err == nil {
			t.Errorf("%q, %q of %x", name, format, b)
		}
	})
}
