package initramfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

var fixedTime = time.Date(2012, 6, 1, 0, 0, 0, 0, time.UTC)

func TestModuleOrder(t *testing.T) {
	tree := writeTree(t)
	tests := []struct {
		names []string
		want  string
	}{
		{nil, ""},
		{[]string{"ext4"}, ""}, // built in
		{[]string{"virtio"}, "virtio"},
		{[]string{"virtio_net"}, "virtio virtio_ring net-failover virtio_net"},
		{[]string{"virtio-net", "virtio_net", "virtio"}, "virtio virtio_ring net-failover virtio_net"},
		{[]string{"net_failover", "virtio_net"}, "net-failover virtio virtio_ring virtio_net"},
		{[]string{"nothing|virtio|hen"}, "virtio"},
		{[]string{"nothing|ext4|virtio"}, ""},
		{[]string{"virtio|", "nothing|", "virtio-net|"}, "virtio virtio_ring net-failover virtio_net"},
	}
	for _, tt := range tests {
		files, err := ModuleOrder(tree, tt.names)
		if err != nil {
			t.Errorf("%v: %v", tt.names, err)
			continue
		}
		var got []string
		for _, f := range files {
			got = append(got, strings.TrimSuffix(filepath.Base(f.Path), ".ko"))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%v: got %v, want %s", tt.names, got, tt.want)
		}
	}
}

// TestModuleOrderDebian resolves what our guests need against a real kernel
// package, if setup has fetched one.
func TestModuleOrderDebian(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "understudy")
	if dir := os.Getenv("UNDERSTUDY_CACHE"); dir != "" {
		cache = dir
	}
	dirs, _ := filepath.Glob(filepath.Join(cache, "kernels", "default", "lib", "modules", "*"))
	if len(dirs) != 1 {
		t.Skipf("no kernel below %s: run scripts/setup.sh", cache)
	}
	files, err := ModuleOrder(dirs[0], []string{"ext4", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "pvpanic-pci"})
	if err != nil {
		t.Fatal(err)
	}
	at := func(base string) int {
		return slices.IndexFunc(files, func(f File) bool { return filepath.Base(f.Path) == base })
	}
	for _, pair := range [][2]string{
		{"virtio.ko", "virtio_pci.ko"}, {"virtio_ring.ko", "virtio_pci.ko"}, {"virtio_pci_modern_dev.ko", "virtio_pci.ko"},
		{"failover.ko", "net_failover.ko"}, {"net_failover.ko", "virtio_net.ko"}, {"pvpanic.ko", "pvpanic-pci.ko"},
	} {
		if a, b := at(pair[0]), at(pair[1]); a < 0 || b < a {
			t.Errorf("%s at %d, %s at %d: want both, in this order", pair[0], a, pair[1], b)
		}
	}
}

// TestModuleTwice checks which file is taken if a tree has a module twice, as DKMS leaves
// it.
func TestModuleTwice(t *testing.T) {
	for _, tt := range []struct{ less, more string }{
		{"kernel/fs", "updates/dkms"},
		{"kernel/fs", "extra/vendor"},
		{"extra", "updates"},
		{"weak-updates/vendor", "kernel/fs"},
		{"weak-updates", "vendor"},
		{"kernel/b", "kernel/a"},
	} {
		for _, suffix := range []string{".ko", ".ko.xz"} {
			tree := writeTree(t)
			for _, dir := range []string{tt.less, tt.more} {
				if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			writeELF(t, filepath.Join(tree, tt.less, "net-twice.ko"), []byte("depends=gone\x00"), false)
			want := writeELF(t, filepath.Join(tree, tt.more, "net_twice.ko"), []byte("depends=\x00"), false)
			if suffix != ".ko" {
				pack(t, want, suffix[3:])
			}
			if _, err := ModuleOrder(tree, []string{"virtio"}); err != nil {
				t.Errorf("%s, %s: another module: %v", tt.less, tt.more, err)
			}
			if files, err := ModuleOrder(tree, []string{"net_twice"}); err != nil || len(files) != 1 || filepath.Base(files[0].Path) != "net_twice.ko" {
				t.Errorf("got %v, %v; want that of %s, not that of %s", files, err, tt.more, tt.less)
			}
		}
	}
}

// pack replaces a file by a compressed one.
func pack(t testing.TB, path, suffix string) string {
	t.Helper()
	plain, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path+suffix, packed(t, plain, suffix), 0o644), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	return path + suffix
}

func packed(t testing.TB, plain []byte, suffix string) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch suffix {
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".xz":
		w, err = xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnpackBound(t *testing.T) {
	const limit = 1 << 20
	for suffix, by := range unpackers {
		if b, err := unpack(bytes.NewReader(packed(t, make([]byte, limit), suffix)), by, limit); err != nil || len(b) != limit {
			t.Errorf("%s: %d bytes, %v; want %d", suffix, len(b), err, limit)
		}
		_, err := unpack(bytes.NewReader(packed(t, make([]byte, limit+1), suffix)), by, limit)
		if err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
			t.Errorf("%s: one byte too much: %v", suffix, err)
		}
	}
}

// FuzzUnpack checks that the unpacked content is bounded, and that there is none if there is an error.
func FuzzUnpack(f *testing.F) {
	const limit = 1 << 20
	for suffix := range unpackers {
		f.Add(packed(f, []byte("a module"), suffix), suffix)
		f.Add(packed(f, make([]byte, 2*limit), suffix), suffix)
	}
	f.Fuzz(func(t *testing.T, b []byte, suffix string) {
		by := unpackers[suffix]
		if by == nil {
			return
		}
		if plain, err := unpack(bytes.NewReader(b), by, limit); len(plain) > limit || err != nil && plain != nil {
			t.Errorf("%d bytes came out, %v", len(plain), err)
		}
	})
}

// FuzzParseDepends checks that the names are clean and not longer than the section,
// whatever the section contains.
func FuzzParseDepends(f *testing.F) {
	f.Add([]byte("license=GPL\x00depends=virtio_ring,virtio,net-failover\x00name=virtio_net\x00"))
	f.Add([]byte("depends=\x00depends=,,a.ko,\x00"))
	f.Fuzz(func(t *testing.T, section []byte) {
		total := 0
		for _, name := range parseDepends(section) {
			total += len(name)
			if name == "" || strings.ContainsAny(name, ",-\x00") {
				t.Errorf("bad name %q", name)
			}
		}
		if total > len(section) {
			t.Errorf("%d bytes of names out of %d", total, len(section))
		}
	})
}

// writeTree makes a small lib/modules/RELEASE, with the spellings and the
// faults that occur.
func writeTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "kernel", "drivers"), 0o755); err != nil {
		t.Fatal(err)
	}
	builtin := "kernel/fs/ext4/ext4.ko\nkernel/arch/x86/crypto/libblake2s-x86_64.ko\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, depends := range map[string]string{
		"virtio":             "",
		"virtio_ring":        "virtio,libblake2s_x86_64",
		"net-failover":       "",
		"drivers/virtio_net": "virtio_ring,virtio,net_failover",
		"orphan":             "gone",
		"hen":                "egg",
		"egg":                "hen",
	} {
		info := []byte("license=GPL\x00depends=" + depends + "\x00\x00name=x\x00")
		writeELF(t, filepath.Join(dir, "kernel", name+".ko"), info, false)
	}
	return dir
}

// writeELF writes a minimal ELF file: with a .modinfo section if modinfo is not
// nil, and with a PT_INTERP segment if it is to look dynamically linked.
func writeELF(t *testing.T, path string, modinfo []byte, dynamic bool) string {
	t.Helper()
	const headerSize, progSize, sectionSize = 64, 56, 64
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	progType := elf.PT_LOAD
	if dynamic {
		progType = elf.PT_INTERP
	}
	sections := uint64(headerSize + progSize)
	data := sections + 3*sectionSize
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: headerSize, Shoff: sections, Ehsize: headerSize,
		Phentsize: progSize, Phnum: 1, Shentsize: sectionSize, Shnum: 3, Shstrndx: 2,
	}
	var b bytes.Buffer
	for _, v := range []any{
		h,
		elf.Prog64{Type: uint32(progType)},
		elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: data, Size: uint64(len(modinfo))},
		elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: data + uint64(len(modinfo)), Size: uint64(len(names))},
		modinfo, names,
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
