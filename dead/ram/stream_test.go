package ram_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// oneBlock is a model whose memory is all in one piece at the start.
func oneBlock() *model {
	m := newModel(23)
	all := m.bytes[1][:len(m.bytes[1])/8192*8192]
	return &model{pieces: []ramtest.Piece{ramtest.Bytes(0, all)}, bytes: [][]byte{all}}
}

// TestStream checks that of a page that was sent twice the later one counts.
func TestStream(t *testing.T) {
	for _, tc := range []struct {
		name   string
		format ramtest.Format
		info   string
		blocks int
	}{
		{"migrate", ramtest.Stream{}, "QEMU migration stream", 1},
		{"two nodes", ramtest.Stream{Blocks: []string{"ram-node0", "ram-node1"}}, "QEMU migration stream", 2},
		{"a node and maybe a DIMM", ramtest.Stream{Blocks: []string{"mem0", "mem1"}}, "QEMU migration stream", 2},
		{"save", ramtest.Stream{Save: true}, "QEMU migration stream, in a libvirt save file", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			model := oneBlock()
			mem, err := ram.OpenFile(write(t, tc.format, model))
			if err != nil {
				t.Fatal(err)
			}
			model.checkDescription(t, mem, ram.Info{Format: tc.info})
			model.checkViews(t, mem, 3)
			model.checkZeros(t, mem)
			if raw, ok := mem.(ram.Unarranged); !ok || raw.Bytes() != model.pieces[0].Size || raw.Blocks() != tc.blocks {
				t.Errorf("%T", mem)
			}
			if err := mem.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// checkZeros checks that everything that is not zero is touched.
func (m *model) checkZeros(t *testing.T, mem ram.Memory) {
	t.Helper()
	var touched []byte
	for part := range mem.(ram.Sparse).Touched(mem.Ranges()[0]) {
		b, err := mem.View(part.Start, int(part.Len()))
		if err != nil {
			t.Fatal(err)
		}
		touched = append(append(touched, make([]byte, int(part.Start)-len(touched))...), b...)
	}
	touched = append(touched, make([]byte, len(m.bytes[0])-len(touched))...)
	if !bytes.Equal(touched, m.bytes[0]) {
		t.Error("something that is not zero was left out")
	}
}

// TestStreamSaved checks save files in which virsh save has compressed what comes after the header.
func TestStreamSaved(t *testing.T) {
	model := oneBlock()
	stream := write(t, ramtest.Stream{}, model)
	save, err := os.ReadFile(write(t, ramtest.Stream{Save: true}, model))
	if err != nil {
		t.Fatal(err)
	}
	const header = 92 + len("<domain type='kvm'/>\x00")
	for format, p := range map[byte]int{1: 0, 2: 4, 3: 1, 5: 2} {
		packed, err := os.ReadFile(pack(t, packers[p].program, stream, packers[p].end))
		if err != nil {
			t.Fatal(err)
		}
		save[28] = format
		path := filepath.Join(t.TempDir(), "save")
		if err := os.WriteFile(path, append(bytes.Clone(save[:header]), packed...), 0o600); err != nil {
			t.Fatal(err)
		}
		mem, err := ram.OpenFile(path)
		if err != nil {
			t.Errorf("%s: %v", packers[p].name, err)
			continue
		}
		model.checkViews(t, mem, 4)
		mem.Close()
		patch(t, path, 28, "\x04")
		if _, err := ram.OpenFile(path); err == nil || !strings.Contains(err.Error(), "lzop, which is not supported") {
			t.Error(err)
		}
	}
}

// TestStreamBlocks checks that memory whose place is not known is refused.
func TestStreamBlocks(t *testing.T) {
	for _, blocks := range [][]string{{"pc.ram", "dimm1"}, {"ram-node0", "ram-node2"}, {"ram-node1", "ram-node2"}} {
		mem, err := ram.OpenFile(write(t, ramtest.Stream{Blocks: blocks}, oneBlock()))
		if err == nil {
			mem.Close()
		}
		if want := "not known: " + strings.Join(blocks, ", "); !errors.Is(err, ram.ErrFormat) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", blocks, err)
		}
	}
}

// TestStreamCut checks that a stream without its end is refused, wherever it ends: the pages that it has
// may be old.
func TestStreamCut(t *testing.T) {
	path := write(t, ramtest.Stream{}, oneBlock())
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := bytes.LastIndex(whole, []byte("\x04\x00\x00\x00\x09\x05timer"))
	for size := end - 6; size > 4; size -= 1 + size/50 { // the footer may be missing
		if err := os.Truncate(path, int64(size)); err != nil {
			t.Fatal(err)
		}
		mem, err := ram.OpenFile(path)
		if err == nil {
			mem.Close()
		}
		if !errors.Is(err, ram.ErrFormat) || !strings.Contains(err.Error(), "may have old pages") {
			t.Errorf("cut to %d of %d bytes: %v", size, end, err)
		}
	}
}
