package metal

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// TestParkCode: every vector leads a parked CPU back to its HLT, by addresses within its
// page.
func TestParkCode(t *testing.T) {
	const at = 0x21000
	page := parkCode(at)
	halt := bytes.Index(page, []byte{0xf4, 0xeb, 0xfd})
	if halt < 0 {
		t.Fatal("it does not halt")
	}
	if !bytes.Contains(page[:halt], []byte{0x0f, 0x01, 0x1e, parkIDTR & 0xff, parkIDTR >> 8}) {
		t.Error("it does not load its vectors")
	}
	if !bytes.Contains(page[:halt], []byte{0x0f, 0x20, 0xc0, 0x66, 0x25, 0xff, 0xff, 0xff, 0x9f, 0x0f, 0x22, 0xc0}) {
		t.Error("it leaves its caches off")
	}
	limit, base := binary.LittleEndian.Uint16(page[parkIDTR:]), binary.LittleEndian.Uint32(page[parkIDTR+2:])
	if int(limit)+1 != 4*vectors || base != at+parkIDT {
		t.Errorf("%d bytes of vectors at %#x", limit+1, base)
	}
	for n := range vectors {
		v := page[parkIDT+4*n:]
		offset, segment := binary.LittleEndian.Uint16(v), binary.LittleEndian.Uint16(v[2:])
		if got := int(segment)<<4 + int(offset); got != at+halt {
			t.Errorf("vector %d leads to %#x, not %#x", n, got, at+halt)
		}
	}
	if parkFlags+256 > parkIDTR || parkIDTR+6 > parkIDT || parkIDT+4*vectors > pageBytes {
		t.Error("its parts overlap")
	}
}
