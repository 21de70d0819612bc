package ram_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// TestRefused checks that what cannot be read is refused for the right reason.
func TestRefused(t *testing.T) {
	kdump := ramtest.Kdump{Codec: ramtest.Zlib}
	sub := int64(addr.PageSize)
	for _, tc := range []struct {
		format ramtest.Format
		off    int64
		patch  string
		want   string
	}{
		{ramtest.ELF{}, 4, "\x01", "32-bit"},
		{ramtest.ELF{}, 5, "\x02", "big-endian"},
		{ramtest.ELF{}, 18, "\xf3", "another architecture (e_machine 243)"},
		{ramtest.ELF{}, 16, "\x02", "not a core"},
		{ramtest.ELF{}, 54, "\x38\x01", "program headers of 312 bytes"},
		{ramtest.ELF{}, 56, "\x00\x00", "0 program headers"},
		{ramtest.ELF{}, 64 + 56 + 30, "\xff", "physical address"},
		{ramtest.ELF{}, 64 + 56 + 15, "\x7f", "at offset"},
		{ramtest.ELF{Note: []byte(noteText)}, 64 + 4*56 + 64 + 12 + 8 + 336 + 12, "ERASEINFO\x00\x00", "erased"},
		{kdump, 0, "DISKDUMP", "diskdump"},
		{kdump, 8, "\x07", "version 7"},
		{kdump, 12 + 4*65, "i686\x00\x00", `another architecture ("i686")`},
		{kdump, 12 + 4*65, "riscv64\x00", `another architecture ("riscv64")`},
		{kdump, 12 + 4*65, "aarch64\x00" + strings.Repeat("\x00", 428-12-4*65-8) + "\x00\x20", "blocks of 8192 bytes"},
		{kdump, 12 + 4*65, "Unknown\x00" + strings.Repeat("\x00", 428-12-4*65-8) + "\x00\x20", "blocks of 8192 bytes"},
		{kdump, 428, "\x00\x00\x01", "blocks of 65536 bytes"},
		{kdump, 428, "\x00\x20", "blocks of 8192 bytes"},
		{kdump, 436, "\x01", "bitmaps"},
		{kdump, 436, "\xff\xff\xff\x7f", "truncated"},
		{kdump, sub + 12, "\x01", "name all of its parts"},
		{ramtest.Kdump{Start: 1, End: 1 << 40}, 8, "\x06", "page frames 0x1 to 0x10000000000"},
		{ramtest.Kdump{Start: 7, End: 6}, 8, "\x06", "page frames 0x7 to 0x6"},
		{kdump, sub + 64, "\x01", "erased"},
		{kdump, sub + 96, "\xff\xff\xff\xff\xff", "pages of memory"},
		{ramtest.LiME{}, 4, "\x02", "version 2"},
		{ramtest.LiME{}, 22, "\xff", "a range from"},
		{ramtest.LiME{}, 24, "\x01", "unknown bits"},
		{ramtest.LiME{}, 16, "\x00", "no header at offset"},
		{ramtest.AVML{Compress: true}, 4, "\x01", "version 1"},
		{ramtest.AVML{Compress: true}, 32, "\x00", "no snappy stream"},
		{ramtest.AVML{Compress: true}, 36, "S", "no snappy stream"},
		{ramtest.Flat{Format: kdump}, 23, "\x02", "type 2"},
		{ramtest.Flat{Format: kdump}, 13, "x", "unknown signature"},
		{ramtest.Flat{Format: ramtest.LiME{}}, 0, "m", "neither an ELF core nor a kdump"},
		{ramtest.LiME{}, 0, "\x1f\x8b\x08\x00", "gzip file: damaged or cut"},
		{ramtest.LiME{}, 0, "QFI\xfb", "disk image"},
		{ramtest.LiME{}, 0, "LibvirtQemudPart", "virsh dump --memory-only"},
		{ramtest.Stream{Save: true}, 16, "\x03", "version 3"},
		{ramtest.Stream{Save: true}, 28, "\x06", "sparse, which is not supported"},
		{ramtest.Stream{Save: true}, 28, "\x09", "format 9"},
		{ramtest.Stream{}, 7, "\x02", "version 2"},
		{ramtest.Stream{}, 25, "dir", `section "dir" comes before the end of the memory`},
		{ramtest.Stream{}, 32, "\x00\x00\x00\x05", "version 5 of RAM"},
		{ramtest.Stream{}, streamPage + 7, "\x40", "capability xbzrle"},
		{ramtest.Stream{}, streamPage + 6, "\x01\x08", "capability compress"},
		{ramtest.Stream{}, streamPage + 6, "\x02\x00", "capability multifd"},
		{ramtest.Stream{}, streamPage + 7, "\x01", "flags 0x1"},
		{ramtest.Stream{}, streamPage + 5, "\x10\x00\x08", "a page at 0x100000 of no block"},
		{ramtest.Stream{Capability: "mapped-ram"}, 0, "Q", `made with "mapped-ram"`},
		{ramtest.Stream{Blocks: []string{"vga.vram"}}, 0, "Q", "no memory"},
	} {
		path := write(t, tc.format, newModel(2))
		patch(t, path, tc.off, tc.patch)
		mem, err := ram.OpenFile(path)
		if err == nil {
			mem.Close()
		}
		if !errors.Is(err, ram.ErrFormat) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%T with %q at %d: %v, want %q", tc.format, tc.patch, tc.off, err, tc.want)
		}
	}
}

// streamPage is where the first page of a stream begins: after the heads of the stream and of
// RAM, two blocks, and the end and the footer of that section.
const streamPage = 8 + (1 + 4 + 6) + (1 + 4 + 4 + 4 + 4) + 8 + (8 + 8) + (7 + 8) + 8 + 5 + 5

func patch(t testing.TB, path string, off int64, s string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(io.NewOffsetWriter(f, off), s); err != nil {
		t.Fatal(err)
	}
}
