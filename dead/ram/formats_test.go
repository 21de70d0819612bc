package ram_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/ramtest"
)

const noteText = "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nNUMBER(phys_base)=0\n"

// model is the memory of a small machine in three pieces, and what a dump of it
// leaves out.
type model struct {
	pieces   []ramtest.Piece
	bytes    [][]byte
	excluded func(addr.PFN) bool
}

// newModel makes pages of all kinds: of zeros, of one byte, of text, and of noise.
func newModel(seed uint64) *model {
	rng := rand.New(rand.NewPCG(seed, 0))
	m := &model{}
	for _, p := range []struct {
		at    addr.Phys
		pages int
	}{{0, 9}, {0x10_0000, 150}, {0x1_0000_0000, 20}} {
		var b []byte
		for range p.pages {
			page := make([]byte, addr.PageSize)
			switch rng.IntN(4) {
			case 1:
				page = bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, addr.PageSize)
			case 2:
				copy(page, strings.Repeat(fmt.Sprintf("some text %d; ", rng.IntN(1000)), 400))
			case 3:
				for i := range page {
					page[i] = byte(rng.Uint32())
				}
			}
			b = append(b, page...)
		}
		m.bytes = append(m.bytes, b)
		m.pieces = append(m.pieces, ramtest.Bytes(p.at, b))
	}
	return m
}

// at returns the rest of the page from pa on, whether a dump has it, and whether
// the machine has it.
func (m *model) at(pa addr.Phys) (rest []byte, there, memory bool) {
	for i, p := range m.pieces {
		if p.Range().Contains(pa, 1) {
			rest = m.bytes[i][pa-p.Phys : addr.Pages4K.Phys(addr.Pages4K.PFN(pa)+1)-p.Phys]
			return rest, m.excluded == nil || !m.excluded(addr.Pages4K.PFN(pa)), true
		}
	}
	return nil, false, false
}

// view returns what a View must return: the bytes, or the address of the fault and whether
// it is of excluded memory.
func (m *model) view(pa addr.Phys, n int) (b []byte, absent addr.Phys, excluded bool) {
	for len(b) < n {
		page, there, memory := m.at(pa)
		if !there {
			return nil, pa, memory
		}
		page = page[:min(len(page), n-len(b))]
		b, pa = append(b, page...), pa+addr.Phys(len(page))
	}
	return b, 0, false
}

// someFrames excludes about a third of all frames, in long and in short stretches.
func someFrames(pfn addr.PFN) bool { return pfn%16 > 11 || pfn%5 == 1 }

// formats are the formats that the model is written in.
var formats = []struct {
	name     string
	format   ramtest.Format
	excluded func(addr.PFN) bool
	info     ram.Info
	note     bool
}{
	{"elf", ramtest.ELF{}, nil, ram.Info{Format: "ELF core"}, false},
	{"elf, note, many segments", ramtest.ELF{Note: []byte(noteText), ManySegments: true}, nil, ram.Info{Format: "ELF core"}, true},
	{"elf, excluded", ramtest.ELF{Excluded: someFrames}, someFrames, ram.Info{Format: "ELF core"}, false},
	{"flat elf", ramtest.Flat{Format: ramtest.ELF{Excluded: someFrames, Note: []byte(noteText)}, Seed: 1}, someFrames,
		ram.Info{Format: "ELF core", Flattened: true}, true},
	{"lime", ramtest.LiME{}, nil, ram.Info{Format: "LiME capture"}, false},
	{"avml v1", ramtest.AVML{}, nil, ram.Info{Format: "LiME capture"}, false},
	{"avml v2", ramtest.AVML{Compress: true}, nil, ram.Info{Format: "AVML capture (snappy)"}, false},
	{"kdump", ramtest.Kdump{}, nil, ram.Info{Format: "kdump-compressed (not compressed)", LevelKnown: true}, false},
	{"kdump zlib", ramtest.Kdump{Codec: ramtest.Zlib, Level: 17, Excluded: someFrames, Note: []byte(noteText)}, someFrames,
		ram.Info{Format: "kdump-compressed (zlib)", Level: 17, LevelKnown: true}, true},
	{"kdump lzo", ramtest.Kdump{Codec: ramtest.LZO, Level: 31, Excluded: someFrames, Note: []byte(noteText), NoteELF: true}, someFrames,
		ram.Info{Format: "kdump-compressed (lzo)", Level: 31, LevelKnown: true}, true},
	{"kdump snappy", ramtest.Kdump{Codec: ramtest.Snappy, Level: 1}, nil,
		ram.Info{Format: "kdump-compressed (snappy)", Level: 1, LevelKnown: true}, false},
	{"kdump zstd", ramtest.Kdump{Codec: ramtest.Zstd, Level: 16, Excluded: someFrames}, someFrames,
		ram.Info{Format: "kdump-compressed (zstd)", Level: 16, LevelKnown: true}, false},
	{"kdump version 1", ramtest.Kdump{Codec: ramtest.Zlib, Level: 17, Version: 1}, nil,
		ram.Info{Format: "kdump-compressed (zlib)", Level: 17, LevelKnown: true}, false},
	{"kdump version 4", ramtest.Kdump{Codec: ramtest.Zlib, Note: []byte(noteText), Version: 4}, nil,
		ram.Info{Format: "kdump-compressed (zlib)", LevelKnown: true}, true},
	{"flat kdump", ramtest.Flat{Format: ramtest.Kdump{Codec: ramtest.Zlib, Level: 31, Excluded: someFrames}, Seed: 2}, someFrames,
		ram.Info{Format: "kdump-compressed (zlib)", Flattened: true, Level: 31, LevelKnown: true}, false},
}

func write(t testing.TB, format ramtest.Format, m *model) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dump")
	if err := ramtest.Create(path, format, m.pieces); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFormatsARM64 reads dumps that differ only in the architecture that they name.
func TestFormatsARM64(t *testing.T) {
	for _, tc := range []struct {
		format ramtest.Format
		off    int64
		patch  string
	}{
		{ramtest.ELF{}, 18, "\xb7\x00"}, // EM_AARCH64
		{ramtest.Kdump{Codec: ramtest.Zlib}, 12 + 4*65, "aarch64\x00"},
		{ramtest.Kdump{Codec: ramtest.Zlib}, 12 + 4*65, "Unknown\x00"}, // by QEMU 10
	} {
		model := newModel(7)
		path := write(t, tc.format, model)
		patch(t, path, tc.off, tc.patch)
		mem, err := ram.OpenFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		defer mem.Close()
		model.checkViews(t, mem, 1)
	}
}

func TestFormats(t *testing.T) {
	for _, tc := range formats {
		t.Run(tc.name, func(t *testing.T) {
			model := newModel(7)
			model.excluded = tc.excluded
			mem, err := ram.OpenFile(write(t, tc.format, model))
			if err != nil {
				t.Fatal(err)
			}
			defer mem.Close()
			model.checkDescription(t, mem, tc.info)
			text, ok := mem.(ram.Noted).VMCoreInfo()
			if ok != tc.note || ok && string(text) != noteText {
				t.Errorf("note: %q, %v", text, ok)
			}
			model.checkTouched(t, mem)
			// Several at once: decoded data is shared.
			var wg sync.WaitGroup
			for seed := range 4 {
				wg.Go(func() { model.checkViews(t, mem, uint64(seed)) })
			}
			wg.Wait()
		})
	}
}

func (m *model) checkDescription(t *testing.T, mem ram.Memory, want ram.Info) {
	t.Helper()
	var ranges []addr.PhysRange
	for _, p := range m.pieces {
		ranges = append(ranges, p.Range())
		for pa := p.Phys; pa < p.Range().End; pa += addr.PageSize {
			if _, there, _ := m.at(pa); there {
				want.Present += addr.PageSize
			} else {
				want.Excluded += addr.PageSize
			}
		}
	}
	if got := mem.Ranges(); !slices.Equal(got, ranges) {
		t.Errorf("ranges %v, want %v", got, ranges)
	}
	if got := mem.(ram.Described).Info(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// checkTouched checks that everything that is there and not zero is touched, and nothing that is absent.
func (m *model) checkTouched(t *testing.T, mem ram.Memory) {
	t.Helper()
	seen := make(map[addr.PFN]bool)
	last := addr.Phys(0)
	for part := range mem.(ram.Sparse).Touched(addr.PhysRange{Start: 0x1800, End: 0x1_0000_a800}) {
		if part.Start < last || part.Len() == 0 || part.Start < 0x1800 || part.End > 0x1_0000_a800 {
			t.Fatalf("%v after %#x", part, uint64(last))
		}
		last = part.End
		if _, err := mem.View(part.Start, int(part.Len())); err != nil {
			t.Errorf("%v: %v", part, err)
		}
		for pa := part.Start; pa < part.End; pa += addr.PageSize {
			seen[addr.Pages4K.PFN(pa)] = true
		}
	}
	for i, p := range m.pieces {
		for pa := p.Phys; pa < p.Range().End; pa += addr.PageSize {
			_, there, _ := m.at(pa)
			page := m.bytes[i][pa-p.Phys:][:addr.PageSize]
			if in := pa >= 0x2000 && pa < 0x1_0000_a000; in && there && !seen[addr.Pages4K.PFN(pa)] && len(bytes.Trim(page, "\x00")) > 0 {
				t.Errorf("%v was left out", pa)
			}
		}
	}
}

// checkViews checks views at random places, more often near the ends of pages.
func (m *model) checkViews(t *testing.T, mem ram.Memory, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	for range 2000 {
		p := m.pieces[rng.IntN(len(m.pieces))]
		pa := p.Phys + addr.Phys(rng.Int64N(p.Size))
		if rng.IntN(2) == 0 {
			pa = pa&^(addr.PageSize-1) + addr.Phys(rng.IntN(3)) - 1
		}
		n := 1 + rng.IntN(16)
		if rng.IntN(4) == 0 {
			n = 1 + rng.IntN(10*addr.PageSize)
		}
		m.checkView(t, mem, pa, n)
	}
	for _, p := range m.pieces {
		m.checkView(t, mem, p.Phys, int(p.Size))
		m.checkView(t, mem, p.Phys, int(p.Size)+1)
	}
}

func (m *model) checkView(t *testing.T, mem ram.Memory, pa addr.Phys, n int) {
	want, absent, excluded := m.view(pa, n)
	got, err := mem.View(pa, n)
	var fault *ram.Fault
	switch {
	case err == nil && !bytes.Equal(got, want):
		t.Errorf("%d bytes at %v are wrong (%d are right)", n, pa, len(want))
	case err == nil:
	case !errors.As(err, &fault):
		t.Error(err)
	case want != nil, fault.Addr != absent, fault.Len != n-int(absent-pa), fault.Excluded != excluded, fault.Cause != nil:
		t.Errorf("%d bytes at %v: %v, want a fault at %v, excluded: %v", n, pa, err, absent, excluded)
	}
}

// TestLost checks that pages that an incomplete dump lost are excluded, and that the others are there.
func TestLost(t *testing.T) {
	model := newModel(5)
	mem, err := ram.OpenFile(write(t, ramtest.Kdump{Codec: ramtest.Zlib, Level: 1, Lost: 60}, model))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if info := mem.(ram.Described).Info(); !info.Incomplete || !strings.Contains(info.Advice(), "incomplete") {
		t.Errorf("%+v", info)
	}
	n := 0
	for i, p := range model.pieces {
		for pa := p.Phys; pa < p.Range().End; pa += addr.PageSize {
			got, err := mem.View(pa, addr.PageSize)
			var fault *ram.Fault
			if n++; n <= 60 {
				if !bytes.Equal(got, model.bytes[i][pa-p.Phys:][:addr.PageSize]) {
					t.Errorf("%v: %v", pa, err)
				}
			} else if !errors.As(err, &fault) || !fault.Excluded || fault.Addr != pa {
				t.Errorf("%v: %d bytes, %v", pa, len(got), err)
			}
		}
	}
}

// TestCut checks that a file without its end is refused, or is known to have none and lacks what was
// there, or, if the end does not matter, is the same as the whole file.
func TestCut(t *testing.T) {
	for _, tc := range formats {
		t.Run(tc.name, func(t *testing.T) {
			model := newModel(9)
			model.excluded = tc.excluded
			path := write(t, tc.format, model)
			stat, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			refused := 0
			for size := stat.Size() - 1; size > 0; size -= 1 + size/37 {
				if err := os.Truncate(path, size); err != nil {
					t.Fatal(err)
				}
				mem, err := ram.OpenFile(path)
				var format *ram.FormatError
				switch {
				case err == nil:
					if model.checkCut(t, mem, size) {
						refused++
					}
					mem.Close()
				case !errors.As(err, &format):
					t.Errorf("%d bytes: %v", size, err)
				case strings.Contains(format.Reason, "truncated"):
					refused++
				}
			}
			if refused < 30 {
				t.Errorf("only %d cuts were called so", refused)
			}
		})
	}
}

// checkCut accepts a capture that was cut between two ranges, because it looks whole. It reports
// whether the file is known to be cut; something is missing from it then.
func (m *model) checkCut(t *testing.T, mem ram.Memory, size int64) bool {
	missing := false
	for _, r := range mem.Ranges() {
		for pa := r.Start; pa < r.End; pa += addr.PageSize {
			got, err := mem.View(pa, addr.PageSize)
			want, _, _ := m.view(pa, addr.PageSize)
			if err == nil && !bytes.Equal(got, want) {
				t.Errorf("cut to %d bytes: wrong bytes at %v", size, pa)
			}
			var fault *ram.Fault
			if err != nil && want != nil {
				missing = true
				if !errors.As(err, &fault) || !fault.Excluded {
					t.Errorf("cut to %d bytes: %v", size, err)
				}
			}
		}
	}
	switch info := mem.(ram.Described).Info(); {
	case info.Truncated != missing:
		t.Errorf("cut to %d bytes: %+v, but something is missing: %v", size, info, missing)
	case info.Truncated && !strings.Contains(info.Advice(), "cut off"):
		t.Errorf("advice: %q", info.Advice())
	case !info.Truncated && (info.LevelKnown || info.Flattened):
		t.Errorf("cut to %d bytes: %+v was opened", size, info)
	}
	return missing
}

// TestClosed checks for errors, not crashes, after Close.
func TestClosed(t *testing.T) {
	for _, tc := range formats {
		mem, err := ram.OpenFile(write(t, tc.format, newModel(3)))
		if err != nil {
			t.Fatal(err)
		}
		if err := mem.Close(); err != nil {
			t.Errorf("%s: close: %v", tc.name, err)
		}
		if _, err := mem.View(0, addr.PageSize); err == nil {
			t.Errorf("%s: closed memory was read", tc.name)
		}
	}
}
