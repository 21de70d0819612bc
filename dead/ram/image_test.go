package ram_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/ramtest"
	"understudy.dev/understudy/internal/lab/tier"
)

// dead is a crashed guest: its RAM file, and what is needed to dump it again.
type dead struct {
	image  *fixture.Image
	mem    ram.Memory
	pieces []ramtest.Piece
	elf    ramtest.ELF // as /proc/vmcore would be
	plans  []string    // of each disk, made from the memory in the RAM file
}

// encoded are the formats that ramtest writes.
var encoded = []struct {
	name   string
	format func(d *dead) ramtest.Format
	large  bool // also from the large machine
}{
	{"elf", func(d *dead) ramtest.Format { return d.elf }, true},
	{"lime", func(d *dead) ramtest.Format { return ramtest.LiME{} }, false},
	{"avml-1", func(d *dead) ramtest.Format { return ramtest.AVML{} }, false},
	{"avml-2", func(d *dead) ramtest.Format { return ramtest.AVML{Compress: true} }, true},
	{"kdump-plain", func(d *dead) ramtest.Format { return ramtest.Kdump{Level: 1, Note: d.elf.Note} }, false},
	{"kdump-zlib", func(d *dead) ramtest.Format { return ramtest.Kdump{Codec: ramtest.Zlib, Level: 1} }, false},
	{"kdump-zstd", func(d *dead) ramtest.Format { return ramtest.Kdump{Codec: ramtest.Zstd, Level: 1} }, true},
	{"flat-kdump-snappy", func(d *dead) ramtest.Format {
		return ramtest.Flat{Format: ramtest.Kdump{Codec: ramtest.Snappy, Level: 1}}
	}, false},
}

// TestSameFromEveryFormat dumps one crash in every format, and checks that each gives
// the bytes, the kernel and the plan that the RAM file itself gives.
func TestSameFromEveryFormat(t *testing.T) {
	d := openDead(t, fixture.Get(t, fixture.Basic))
	d.checkEncoded(t, false)
	t.Run("makedumpfile", func(t *testing.T) {
		d.checkMakedumpfile(t, "-d 0", "-E -d 31", "-c -d 17", "-l -d 17", "-F -c -d 17", "-c -d 31", "-c -d 17 --split")
		if tier.IsFull() {
			d.checkMakedumpfile(t, "-E -d 16", "-c -d 1", "-c -d 25", "-p -d 17", "-z -d 17", "-F -E -d 16", "-c -d 17 --splitblock-size 16 --split")
		}
	})
	t.Run("qemu", func(t *testing.T) { d.checkQEMU(t, "elf", "kdump-zlib", "kdump-lzo", "kdump-snappy", migrated) })
}

// TestSameAcrossTheHole does the same with a machine that has memory on both sides of
// the hole below 4 GiB, in fewer formats.
func TestSameAcrossTheHole(t *testing.T) {
	d := openDead(t, fixture.Get(t, fixture.Large))
	d.checkEncoded(t, true)
	t.Run("makedumpfile", func(t *testing.T) { d.checkMakedumpfile(t, "-E -d 16", "-l -d 17", "-c -d 31") })
	t.Run("qemu", func(t *testing.T) { d.checkQEMU(t, "kdump-zlib", migrated) })
}

func (d *dead) checkEncoded(t *testing.T, large bool) {
	for _, f := range encoded {
		if large && !f.large {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), f.name)
			if err := ramtest.Create(path, f.format(d), d.pieces); err != nil {
				t.Fatal(err)
			}
			d.checkSame(t, path)
		})
	}
}

func openDead(t testing.TB, image *fixture.Image) *dead {
	mem, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	d := &dead{image: image, mem: mem}
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	// What the firmware has between 640 KiB and 1 MiB is not RAM to the kernel.
	for _, r := range mem.Ranges() {
		if r.Start == 0 {
			d.pieces = append(d.pieces, d.piece(addr.PhysRange{Start: 0, End: 0xa_0000}))
			r.Start = 0x10_0000
		}
		d.pieces = append(d.pieces, d.piece(r))
	}
	base, err := k.Symbol("page_offset_base")
	if err != nil {
		t.Fatal(err)
	}
	direct, err := k.Pointer(base)
	if err != nil {
		t.Fatal(err)
	}
	d.elf = ramtest.ELF{DirectMap: direct, Note: d.findNote(t)}
	d.plans = d.plan(t, mem)
	return d
}

func (d *dead) piece(r addr.PhysRange) ramtest.Piece {
	return ramtest.Piece{Phys: r.Start, Size: int64(r.Len()), Data: readerOf{d.mem, r.Start}}
}

// readerOf reads memory from an address on.
type readerOf struct {
	mem ram.Memory
	at  addr.Phys
}

func (r readerOf) ReadAt(p []byte, off int64) (int, error) {
	b, err := r.mem.View(r.at+addr.Phys(off), len(p))
	return copy(p, b), err
}

// findNote looks for the text of the VMCOREINFO note, as the crashed kernel would
// hand it to the program that makes the dump.
func (d *dead) findNote(t testing.TB) []byte {
	head := append(binary.LittleEndian.AppendUint32(nil, 11), "VMCOREINFO\x00\x00OSRELEASE="...)
	for _, r := range d.mem.Ranges() {
		for part := range d.mem.(ram.Sparse).Touched(r) {
			for pa := part.Start; pa < part.End; pa += addr.PageSize {
				b, err := d.mem.View(pa, addr.PageSize)
				if err != nil || !bytes.HasPrefix(b, head[:4]) || !bytes.HasPrefix(b[12:], head[4:]) {
					continue
				}
				text := b[24:]
				text = text[:min(len(text), int(binary.LittleEndian.Uint32(b[4:])))]
				if bytes.Contains(text, []byte("NUMBER(phys_base)")) {
					return text
				}
			}
		}
	}
	t.Fatal("no note in memory")
	return nil
}

// plan returns what salvage finds on each disk: everything about each file, and the bytes.
func (d *dead) plan(t testing.TB, mem ram.Memory) []string {
	t.Helper()
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	var plans []string
	for _, disk := range d.image.Disks {
		id, err := addr.ParseUUID(disk.UUID)
		if err != nil {
			t.Fatal(err)
		}
		p, err := salvage.New(k, id)
		if err != nil {
			t.Fatalf("%s: %v", disk.Name, err)
		}
		staged := make([]byte, p.StagingSize())
		if err := p.Gather(staged); err != nil {
			t.Fatalf("%s: %v", disk.Name, err)
		}
		all := fmt.Sprintf("%s %+v %+v %x\n", k.Banner, p.Files, p.Report(), sha256.Sum256(staged))
		for _, r := range p.Refused {
			all += r.Error() + "\n"
		}
		for _, err := range p.Faults {
			all += err.Error() + "\n"
		}
		if len(p.Files) < 100 || len(staged) < 512<<10 {
			t.Errorf("%s: only %d files, %d bytes", disk.Name, len(p.Files), len(staged))
		}
		plans = append(plans, all)
	}
	return plans
}

// checkSame compares a dump with the RAM file: every byte of it, and the plans.
func (d *dead) checkSame(t *testing.T, paths ...string) {
	start := time.Now()
	mem, err := ram.OpenFiles(paths...)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	opened := time.Since(start)
	plans := d.plan(t, mem)
	planned := time.Since(start)
	for i, disk := range d.image.Disks {
		if plans[i] != d.plans[i] {
			t.Errorf("%s: the plan differs from that of the RAM file", disk.Name)
		}
	}
	d.checkBytes(t, mem)
	info := mem.(ram.Described).Info()
	if info.MissesCache() {
		t.Errorf("%+v", info)
	}
	t.Logf("%s, %d MiB, %d MiB excluded: opened in %v, kernel and plans in %v", info.Format, info.Present>>20, info.Excluded>>20, opened, planned)
}

// checkBytes compares everything in a dump that the kernel had as RAM. QEMU also
// dumps devices, and its machine, which never ran, has other ROMs below 1 MiB.
func (d *dead) checkBytes(t *testing.T, mem ram.Memory) {
	t.Helper()
	const step = 1 << 20
	compared, wrong := 0, 0
	for _, piece := range d.pieces {
		for part := range mem.(ram.Sparse).Touched(piece.Range()) {
			for pa := part.Start; pa < part.End; pa += step {
				n := int(min(step, part.End-pa))
				want, err := d.mem.View(pa, n)
				if err != nil {
					t.Fatal(err)
				}
				got, err := mem.View(pa, n)
				if err != nil {
					t.Fatal(err)
				}
				if compared += n; !bytes.Equal(got, want) {
					if wrong++; wrong < 5 {
						t.Errorf("the %d bytes at %v differ", n, pa)
					}
				}
			}
		}
	}
	if compared < 16<<20 {
		t.Errorf("only %d bytes could be compared", compared)
	}
}

// checkMakedumpfile filters and compresses the crash with makedumpfile, once for each
// set of options, and checks the results.
func (d *dead) checkMakedumpfile(t *testing.T, options ...string) {
	tool := makedumpfile(t)
	vmcore := filepath.Join(t.TempDir(), "vmcore")
	if err := ramtest.Create(vmcore, d.elf, d.pieces); err != nil {
		t.Fatal(err)
	}
	for _, option := range options {
		t.Run(option, func(t *testing.T) {
			dump := runMakedumpfile(t, tool, vmcore, strings.Fields(option))
			switch {
			case strings.HasSuffix(option, "--split"):
				d.checkSplit(t, dump)
			case option == "-c -d 31":
				d.checkNoCache(t, dump, "dump level 31")
			case option == "-E -d 31":
				d.checkNoCache(t, dump, "a level that the file does not tell")
			case option == "-c -d 17" || option == "-E -d 16":
				d.checkSame(t, dump)
				d.checkCut(t, dump)
			default:
				d.checkSame(t, dump)
			}
		})
	}
}

func runMakedumpfile(t *testing.T, tool, vmcore string, options []string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "dump")
	cmd := exec.Command(tool, append(append([]string{"--message-level", "4"}, options...), vmcore)...)
	if options[0] == "-F" {
		f, err := os.Create(out)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.Stdout = f
	} else {
		cmd.Args = append(cmd.Args, out)
	}
	if options[len(options)-1] == "--split" {
		cmd.Args = append(cmd.Args, out+"-2")
	}
	var messages strings.Builder
	cmd.Stderr = &messages
	err := cmd.Run()
	if m := messages.String(); err != nil && (strings.Contains(m, "compression unsupported") || strings.Contains(m, "doesn't support")) {
		t.Skipf("%s was built without this compression: %s", tool, m)
	}
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, messages.String())
	}
	return out
}

// checkCut cuts a quarter off a dump, and checks that the remainder is right, and that the rest is known to be missing.
func (d *dead) checkCut(t *testing.T, path string) {
	stat, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, stat.Size()/4*3); err != nil {
		t.Fatal(err)
	}
	mem, err := ram.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if info := mem.(ram.Described).Info(); !info.Truncated || !strings.Contains(info.Advice(), "cut off") {
		t.Errorf("%+v", info)
	}
	there, missing := 0, 0
	for _, piece := range d.pieces {
		for part := range mem.(ram.Sparse).Touched(piece.Range()) {
			for pa := part.Start; pa < part.End; pa += addr.PageSize {
				got, err := mem.View(pa, addr.PageSize)
				if err != nil {
					missing++
					continue
				}
				want, err := d.mem.View(pa, addr.PageSize)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%v: %v", pa, err)
				}
				there++
			}
		}
	}
	t.Logf("%d pages are there, %d that are listed are not", there, missing)
	if there < 1000 {
		t.Error("nearly nothing was left")
	}
}

// checkSplit checks that both parts of a dump, in any order, make the whole, and that each part alone is
// refused, and so is a part with something else. With a small machine makedumpfile's second part has
// nothing, unless it is told otherwise.
func (d *dead) checkSplit(t *testing.T, path string) {
	other := path + "-2"
	for _, paths := range [][]string{{path}, {other}, {path, path}, {other, d.image.RAM}} {
		mem, err := ram.OpenFiles(paths...)
		if err == nil {
			mem.Close()
		}
		if !errors.Is(err, ram.ErrFormat) {
			t.Errorf("%v: %v", paths, err)
		}
	}
	d.checkSame(t, path, other)
	d.checkSame(t, other, path)
}

// makedumpfile returns the path of Debian's makedumpfile, or of one with all compressions built in.
func makedumpfile(t *testing.T) string {
	if tool := os.Getenv("UNDERSTUDY_MAKEDUMPFILE"); tool != "" {
		return tool
	}
	tool, err := exec.LookPath("makedumpfile")
	if err != nil {
		t.Skipf("no makedumpfile (apt-get install makedumpfile): %v", err)
	}
	return tool
}

// checkNoCache checks that without page cache nothing wrong is found, and that the advice says why so
// little is found.
func (d *dead) checkNoCache(t *testing.T, path, advice string) {
	mem, err := ram.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	d.checkBytes(t, mem)
	if got := mem.(ram.Described).Info().Advice(); !strings.Contains(got, advice) || !strings.Contains(got, "-d 17 or 25") {
		t.Errorf("advice: %q", got)
	}
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	for _, disk := range d.image.Disks {
		id, err := addr.ParseUUID(disk.UUID)
		if err != nil {
			t.Fatal(err)
		}
		p, err := salvage.New(k, id)
		if err != nil {
			t.Logf("%s: %v", disk.Name, err)
			continue
		}
		var fault *ram.Fault
		if err := p.Gather(make([]byte, p.StagingSize())); !errors.As(err, &fault) || !fault.Excluded {
			t.Errorf("%s: %d bytes were gathered: %v", disk.Name, p.StagingSize(), err)
		}
	}
}
