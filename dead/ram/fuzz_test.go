package ram

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// memInput is a file in memory.
type memInput struct{ *bytes.Reader }

func (memInput) Close() error { return nil }

func inputOf(b []byte) input { return memInput{bytes.NewReader(b)} }

// dumpBytes returns the file that a format makes of tinyMemory.
func dumpBytes(f testing.TB, format ramtest.Format) []byte {
	f.Helper()
	path := filepath.Join(f.TempDir(), "dump")
	if err := ramtest.Create(path, format, []ramtest.Piece{
		ramtest.Bytes(0x1000, tinyMemory[0]), ramtest.Bytes(0x8000, tinyMemory[1]),
	}); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// tinyMemory is two pieces of memory: a page of text, and a page of zeros with one
// of noise.
var tinyMemory = func() [2][]byte {
	rng := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, 2*addr.PageSize)
	for i := addr.PageSize; i < len(noise); i++ {
		noise[i] = byte(rng.Uint32())
	}
	return [2][]byte{bytes.Repeat([]byte("a page of text; "), addr.PageSize/16), noise}
}()

func tinyFormats() []ramtest.Format {
	odd := func(pfn addr.PFN) bool { return pfn%2 == 1 }
	return []ramtest.Format{
		ramtest.ELF{Note: []byte("OSRELEASE=1\n"), Excluded: odd}, ramtest.ELF{ManySegments: true},
		ramtest.LiME{}, ramtest.AVML{Compress: true},
		ramtest.Kdump{Codec: ramtest.Zlib, Level: 1, Note: []byte("OSRELEASE=1\n")},
		ramtest.Kdump{Codec: ramtest.LZO, Lost: 2}, ramtest.Kdump{Codec: ramtest.Snappy, Version: 3},
		ramtest.Kdump{Codec: ramtest.Zstd, Excluded: odd, NoteELF: true, Note: []byte("OSRELEASE=1\n")},
		ramtest.Stream{}, ramtest.Stream{Save: true},
		ramtest.Flat{Format: ramtest.ELF{}}, ramtest.Flat{Format: ramtest.Kdump{Codec: ramtest.Zlib}},
	}
}

// FuzzOpen checks that any file is refused, or opened as memory that keeps its promises:
// ranges ascend and do not touch each other, what is touched lies in them and can be read or
// is damaged, and elsewhere there are faults or zeros.
func FuzzOpen(f *testing.F) {
	for _, format := range tinyFormats() {
		f.Add(dumpBytes(f, format))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !bytes.HasPrefix(b, []byte(flatMagic)) && !bytes.HasPrefix(b, []byte("\x7fELF")) && len(b)%2 == 1 {
			b = append([]byte(kdumpMagic), b...)
		}
		m, err := openInput(inputOf(b))
		if err != nil {
			return
		}
		checkPromises(t, m)
	})
}

func checkPromises(t *testing.T, m Memory) {
	t.Helper()
	var last addr.Phys
	budget := 1000
	for i, r := range m.Ranges() {
		if r.Len() == 0 || i > 0 && r.Start <= last {
			t.Fatalf("range %v after %#x", r, uint64(last))
		}
		at := r.Start
		last = r.End
		for part := range m.(Sparse).Touched(r) {
			if budget--; budget < 0 {
				return
			}
			if part.Start < at || part.End > r.End || part.Len() == 0 {
				t.Fatalf("touched %v of %v, after %#x", part, r, uint64(at))
			}
			if part.Start > at {
				wantNothing(t, m, at, 1)
			}
			for _, n := range []int{1, 8, 5000} {
				n = min(n, int(part.Len()))
				b, err := m.View(part.End-addr.Phys(n), n)
				var fault *Fault
				if err == nil && len(b) != n || err != nil && (!errors.As(err, &fault) || fault.Cause == nil) {
					t.Fatalf("%d bytes before the end of %v: %d, %v", n, part, len(b), err)
				}
			}
			at = part.End
		}
		if at < r.End {
			wantNothing(t, m, at, 2)
		}
		wantNothing(t, m, r.End, 1)
	}
}

// wantNothing checks that there are zeros at pa, or a fault.
func wantNothing(t *testing.T, m Memory, pa addr.Phys, n int) {
	t.Helper()
	b, err := m.View(pa, n)
	var fault *Fault
	if err == nil && len(b) == n && b[0] == 0 && inRanges(m.Ranges(), pa) {
		return
	}
	if !errors.As(err, &fault) || fault.Addr != pa || fault.Cause != nil || fault.Excluded != inRanges(m.Ranges(), pa) {
		t.Fatalf("%d bytes at %v: %d, %v", n, pa, len(b), err)
	}
}

// FuzzDamage checks that in formats with checksums damage never shows as wrong bytes:
// each page reads as it was, or not at all.
func FuzzDamage(f *testing.F) {
	good := [][]byte{
		dumpBytes(f, ramtest.AVML{Compress: true}),
		dumpBytes(f, ramtest.Kdump{Codec: ramtest.Zlib, Level: 1}),
	}
	f.Add(uint8(0), uint32(100), uint8(1))
	f.Add(uint8(1), uint32(0x5100), uint8(0x80))
	f.Fuzz(func(t *testing.T, which uint8, at uint32, flip uint8) {
		b := slices.Clone(good[int(which)%len(good)])
		// Headers have no checksums, nor have pages that do not shrink:
		// only the page of text is looked at.
		b[int(at)%len(b)] ^= flip
		m, err := openInput(inputOf(b))
		if err != nil {
			return
		}
		page, err := m.View(0x1000, addr.PageSize)
		if err != nil || bytes.Equal(page, tinyMemory[0]) {
			return
		}
		if int(at)%len(b) >= dataOffset(b) {
			t.Errorf("damage at %#x shows", int(at)%len(b))
		}
	})
}

// dataOffset returns where the headers of a file end, and its data begins.
func dataOffset(b []byte) int {
	if bytes.HasPrefix(b, []byte(kdumpMagic)) {
		return 5*addr.PageSize + 3*kdumpDescSize
	}
	return limeHeaderSize
}

// FuzzFlat checks that reading through the index of a flattened file gives what writing the records
// one after the other gives, and that what no record wrote is an error.
func FuzzFlat(f *testing.F) {
	f.Add([]byte{0, 10, 5, 10, 2, 3})
	f.Add([]byte{200, 1, 0, 255, 100, 50, 100, 49})
	f.Fuzz(func(t *testing.T, script []byte) {
		var file, real []byte
		written := make([]bool, 512)
		real = make([]byte, 512)
		file = append(file, flatMagic...)
		file = append(file, make([]byte, flatHeaderSize-len(flatMagic))...)
		file[23], file[31] = flatType, flatVersion
		for i := 0; i+1 < len(script); i += 2 {
			off, n := int(script[i]), 1+int(script[i+1])
			file = append(file, 0, 0, 0, 0, 0, 0, 0, byte(off), 0, 0, 0, 0, 0, 0, byte(n>>8), byte(n))
			for j := range n {
				c := byte(i*31 + j)
				file = append(file, c)
				real[off+j], written[off+j] = c, true
			}
		}
		file = append(file, bytes.Repeat([]byte{0xff}, 16)...)
		fl, err := openFlat(inputOf(file))
		if err != nil {
			if len(script) > 1 {
				t.Error(err)
			}
			return
		}
		for off := range int(fl.Size()) {
			var b [7]byte
			n, err := fl.ReadAt(b[:], int64(off))
			want := 0
			for ; want < len(b) && off+want < len(real) && written[off+want]; want++ {
			}
			if n != want || (err == nil) != (want == len(b)) || !bytes.Equal(b[:n], real[off:off+n]) {
				t.Fatalf("offset %d: %d bytes %v, %v, want %d", off, n, b, err, want)
			}
		}
	})
}

// FuzzBitmap checks that runs, counts and membership are those of the single bits.
func FuzzBitmap(f *testing.F) {
	f.Add([]byte{0xff, 0, 1, 0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, uint16(87))
	f.Add(bytes.Repeat([]byte{0xff}, 200), uint16(1500))
	f.Fuzz(func(t *testing.T, b []byte, count uint16) {
		count = uint16(min(int(count), 8*len(b)))
		m, err := readBitmap(inputOf(b), 0, uint64(count))
		if err != nil {
			t.Fatal(err)
		}
		set := make([]bool, int(count)+1)
		n := uint64(0)
		for i := range int(count) {
			set[i] = b[i/8]>>(i%8)&1 != 0
			if set[i] {
				if got := m.before(addr.PFN(i)); got != n {
					t.Fatalf("%d before %d, want %d", got, i, n)
				}
				n++
			}
			if m.has(addr.PFN(i)) != set[i] {
				t.Fatalf("bit %d is not %v", i, set[i])
			}
		}
		if m.total != n || m.has(addr.PFN(count)) {
			t.Fatalf("%d bits, want %d", m.total, n)
		}
		seen := uint64(0)
		for first, end := range m.runs(0, addr.PFN(count)) {
			if first >= end || first > 0 && set[first-1] || set[end] {
				t.Fatalf("run [%d, %d)", first, end)
			}
			for pfn := first; pfn < end; pfn++ {
				if seen++; !set[pfn] {
					t.Fatalf("%d is not in the set", pfn)
				}
			}
		}
		if seen != n {
			t.Fatalf("%d bits in runs, want %d", seen, n)
		}
	})
}

// FuzzDecodePage checks that a page comes out whole or not at all, whatever goes in.
func FuzzDecodePage(f *testing.F) {
	for _, codec := range []ramtest.Codec{ramtest.Plain, ramtest.Zlib, ramtest.LZO, ramtest.Snappy, ramtest.Zstd} {
		b := dumpBytes(f, ramtest.Kdump{Codec: codec})
		k := &kdumpPages{in: inputOf(b), dumped: &bitmap{total: 3}, count: 3, descs: 5 * addr.PageSize, cache: newCache(1 << 16)}
		for n := range uint64(3) {
			d, err := k.desc(n)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b[d.off:d.off+uint64(d.size)], d.flags)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, flags uint32) {
		src = src[:min(len(src), addr.PageSize)]
		first, second := make([]byte, addr.PageSize), bytes.Repeat([]byte{0xaa}, addr.PageSize)
		err1, err2 := decodePage(first, src, flags), decodePage(second, src, flags)
		if (err1 == nil) != (err2 == nil) || err1 == nil && !bytes.Equal(first, second) {
			t.Errorf("what was there before shows: %v, %v", err1, err2)
		}
	})
}

// FuzzNotes checks that descriptors lie within the notes, and that the walk ends.
func FuzzNotes(f *testing.F) {
	f.Add([]byte("\x05\x00\x00\x00\x03\x00\x00\x00\x01\x00\x00\x00CORE\x00\x00\x00\x00abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		for name, desc := range elfNotes(b) {
			total += noteHeadSize + len(name) + len(desc)
		}
		if total > len(b) {
			t.Errorf("%d bytes of notes in %d", total, len(b))
		}
	})
}

// FuzzUnpack checks that what is decompressed completely is in the file that it is unpacked to, and
// that what breaks off is refused.
func FuzzUnpack(f *testing.F) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(dumpBytes(f, ramtest.ELF{})); err != nil || w.Close() != nil {
		f.Fatal(err)
	}
	f.Add(packed.Bytes())
	for i := range packers {
		f.Add([]byte(packers[i].magic + "91AY&SY"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := packerOf(b)
		if p == nil {
			return
		}
		var want []byte
		r, wantErr := p.reader(bytes.NewReader(b))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(r, 1<<26))
		}
		if len(want) == 1<<26 {
			return // more than is worth comparing
		}
		out, err := p.unpack(inputOf(b), 0)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, want %v", err, wantErr)
		}
		if err != nil {
			return
		}
		defer out.Close()
		got := make([]byte, out.Size())
		if _, err := out.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d, %v", len(got), len(want), err)
		}
	})
}

// FuzzVMware checks that any state file is refused, or arranges memory that keeps its promises.
func FuzzVMware(f *testing.F) {
	pieces := []ramtest.Piece{ramtest.Bytes(0x1000, tinyMemory[0]), ramtest.Bytes(0x8000, tinyMemory[1])}
	for _, embedded := range []bool{false, true} {
		state, _, err := ramtest.VMware(pieces, embedded)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(state)
	}
	memory := append(bytes.Clone(tinyMemory[0]), tinyMemory[1]...)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readVMware(inputOf(b))
		if err != nil {
			return
		}
		in, size := inputOf(memory), int64(len(memory))
		if s.memory {
			in, size = behind{inputOf(b), s.start}, s.length
		}
		if m, err := s.open(in, size); err == nil {
			checkPromises(t, m)
		}
	})
}

// TestLive checks that an ELF core that cannot be mapped, and has segments without a place, can be read, and is
// known to change.
func TestLive(t *testing.T) {
	b := dumpBytes(t, ramtest.ELF{})
	add := bytes.Clone(b[elfHeaderSize:][:elfPhdrSize])
	copy(add[24:], bytes.Repeat([]byte{0xff}, 8))
	// The last segment is replaced by one without a place.
	count := int(b[56])
	copy(b[elfHeaderSize+(count-1)*elfPhdrSize:], add)
	m, err := openLive(inputOf(b))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got, err := m.View(0x1000, addr.PageSize); err != nil || !bytes.Equal(got, tinyMemory[0]) {
		t.Errorf("%v", err)
	}
	if info := m.(Described).Info(); !info.Live || len(m.Ranges()) != 1 {
		t.Errorf("%+v %v", info, m.Ranges())
	}
}
