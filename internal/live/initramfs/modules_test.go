package initramfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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
		paths, err := ModuleOrder(tree, tt.names)
		if err != nil {
			t.Errorf("%v: %v", tt.names, err)
			continue
		}
		var got []string
		for _, p := range paths {
			got = append(got, strings.TrimSuffix(filepath.Base(p), ".ko"))
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
	paths, err := ModuleOrder(dirs[0], []string{"ext4", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "pvpanic-pci"})
	if err != nil {
		t.Fatal(err)
	}
	at := func(base string) int {
		return slices.IndexFunc(paths, func(p string) bool { return filepath.Base(p) == base })
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

// FuzzParseDepends holds that names come out clean and no longer than what
// went in, whatever the section contains.
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
