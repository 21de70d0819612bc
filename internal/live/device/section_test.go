package device

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/internal/live/disk"
)

// TestSection: what is outside of a partition is neither read nor written.
func TestSection(t *testing.T) {
	const off, size = 4096, 8192
	path := filepath.Join(t.TempDir(), "disk")
	before := bytes.Repeat([]byte{7}, 4*size)
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := Section{Direct: Direct{File: f}, At: []disk.Stretch{{Off: off, Len: size}}}
	b := bytes.Repeat([]byte{1}, 512)
	for _, at := range []int64{-512, size, size - 256, 1 << 62} {
		if n, err := s.WriteAt(b, at); err == nil || n != 0 {
			t.Errorf("wrote at %d", at)
		}
		if n, err := s.ReadAt(make([]byte, 512), at); err == nil || n != 0 {
			t.Errorf("read at %d", at)
		}
		if err := s.WriteStretches(2, func(i int) (int64, [][]byte) { return []int64{0, at}[i], [][]byte{b} }); err == nil {
			t.Errorf("wrote a stretch at %d", at)
		}
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
		t.Fatalf("the disk has changed: %v", err)
	}
	if err := s.WriteStretches(2, func(i int) (int64, [][]byte) { return []int64{0, size - 512}[i], [][]byte{b} }); err != nil {
		t.Fatal(err)
	}
	copy(before[off:], b)
	copy(before[off+size-512:], b)
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
		t.Errorf("other bytes have changed: %v", err)
	}
	if end, err := s.Seek(0, io.SeekEnd); err != nil || end != size {
		t.Errorf("it has %d bytes: %v", end, err)
	}
}
