package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
)

func octal(mode uint32) string { return fmt.Sprintf("%04o", mode&0o7777) }

func inodeOf(f record.File) *pagecache.Inode {
	return &pagecache.Inode{Ino: addr.Ino(f.Ino), Generation: uint32(f.Generation)}
}

// TestMountAgainstExtract checks that each byte of a mount is as in an extraction, and that
// there is an I/O error where the manifest says that memory has nothing.
func TestMountAgainstExtract(t *testing.T) {
	image := crashImage(t, fixture.Basic)
	out := filepath.Join(t.TempDir(), "out")
	if got := command(t, "salvage", "extract", image.RAM, "-o", out, "--all"); got.err != nil {
		t.Fatal(got.err)
	}
	at := mounted(t, image.RAM)
	raw, err := os.ReadFile(filepath.Join(out, inventory.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	whole, broken := 0, 0
	for _, fsys := range report(t, string(raw)).FileSystems {
		for _, f := range fsys.Files {
			name := inventory.TextOf(f.Written.Name, f.Written.NameBase64)
			if len(f.Absent) == 0 {
				whole++
				compareFiles(t, filepath.Join(at, name), filepath.Join(out, name))
			} else {
				broken++
				checkBroken(t, filepath.Join(at, name), filepath.Join(out, name), &f)
			}
		}
	}
	if whole == 0 || broken == 0 {
		t.Errorf("%d whole files and %d with something missing: the test proves nothing", whole, broken)
	}
	t.Logf("%d whole files, %d with something missing", whole, broken)
	checkReadOnly(t, at)
}

// mounted mounts an image for the rest of the test.
func mounted(t *testing.T, image string, args ...string) string {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("cannot mount: ", err)
	}
	f.Close()
	at := t.TempDir()
	// The mount is not in this process, which could wait for itself on one CPU: Go's runtime
	// calls epoll_ctl for a file that it opens, without letting others run meanwhile.
	cmd := exec.Command(binary, append([]string{"salvage", "mount", image, at}, args...)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := cmd.Process.Signal(os.Interrupt)
		if err = errors.Join(err, cmd.Wait()); err != nil {
			t.Errorf("%v: %s", err, said.String())
		}
		if left, err := os.ReadDir(at); err != nil || len(left) > 0 {
			t.Errorf("still mounted: %v, %v", left, err)
		}
	})
	awaitMount(t, at)
	return at
}

// TestMountWithDisk checks that every file is complete and as the guest had it, if the disk
// is behind the memory.
func TestMountWithDisk(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]fixture.Spec{"basic": fixture.Basic, "writeback": fixture.Writeback, "untyped": fixture.Untyped} {
		t.Run(name, func(t *testing.T) {
			image := crashImage(t, spec)
			var args []string
			device := make(map[string]string)
			for i, d := range image.Disks {
				path := d.Image
				if i < 2 && name == "basic" {
					path = filepath.Join(t.TempDir(), "copy.img")
					copyDisk(t, d.Image, path)
					path = []func(*testing.T, string) string{inVolume, asQcow2}[i](t, path)
				}
				args = append(args, "--disk", path)
			}
			for _, f := range report(t, command(t, "salvage", "list", image.RAM, "--json").out).FileSystems {
				device[f.UUID] = f.Device
			}
			before := diskSums(t, image)
			at := mounted(t, image.RAM, args...)
			n := 0
			for key, want := range truths(image) {
				b, err := os.ReadFile(filepath.Join(at, device[key[0]], key[1]))
				if sum := sha256.Sum256(b); err != nil || hex.EncodeToString(sum[:]) != want.SHA256 {
					t.Errorf("%s/%s is not as the guest had it: %v", want.FS, key[1], err)
				}
				n++
			}
			if n == 0 || diskSums(t, image) != before {
				t.Errorf("%d files; the evidence has changed: %v", n, diskSums(t, image) != before)
			}
			t.Logf("%d files are as the guest had them", n)
		})
	}
}

func diskSums(t *testing.T, image *fixture.Image) [32]byte {
	t.Helper()
	h := sha256.New()
	for _, d := range image.Disks {
		f, err := os.Open(d.Image)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(h, f)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return [32]byte(h.Sum(nil))
}

// TestMountWrongDisk checks that a disk is refused if it is another one, or was written to
// since the crash.
func TestMountWrongDisk(t *testing.T) {
	image := crashImage(t, fixture.Basic)
	disk, err := os.ReadFile(image.Disks[0].Image)
	if err != nil {
		t.Fatal(err)
	}
	for want, off := range map[string]int{"the dead kernel had": 0x68, "mounted or checked since": 0x34, "mounted since": 0x2c, "only raw and qcow2 images can fill holes": 0x38} {
		changed := filepath.Join(t.TempDir(), "disk")
		disk[ext4.SuperOffset+off]++
		if err := os.WriteFile(changed, disk[:1<<20], 0o600); err != nil {
			t.Fatal(err)
		}
		disk[ext4.SuperOffset+off]--
		got := command(t, "salvage", "mount", image.RAM, t.TempDir(), "--disk", changed)
		if got.err == nil || !strings.Contains(got.err.Error(), want) || exitCode(got.err) != 1 {
			t.Errorf("%v, want %q", got.err, want)
		}
	}
}

func awaitMount(t *testing.T, dir string) {
	t.Helper()
	await(t, "mount", programLimit, func() bool {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		return err == nil && s.Type == unix.FUSE_SUPER_MAGIC
	})
}

func compareFiles(t *testing.T, a, b string) {
	t.Helper()
	as, err := os.ReadFile(a)
	if err != nil {
		t.Error(err)
		return
	}
	bs, err := os.ReadFile(b)
	if err != nil || !bytes.Equal(as, bs) {
		t.Errorf("%s differs: %v", a, err)
	}
	ai, err1 := os.Stat(a)
	bi, err2 := os.Stat(b)
	if err := errors.Join(err1, err2); err != nil || ai.Size() != bi.Size() || !ai.ModTime().Equal(bi.ModTime()) || ai.Mode().Perm() != bi.Mode().Perm() {
		t.Errorf("%s: %v, %v; %v", a, ai, bi, err)
	}
}

// checkBroken reads a file page by page, and checks that each page is right, or an I/O error.
func checkBroken(t *testing.T, mounted, extracted string, f *inventory.FileReport) {
	t.Helper()
	want, err := os.ReadFile(extracted)
	if err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(mounted)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var absent []addr.Span
	for _, r := range f.Absent {
		absent = append(absent, addr.Span{Off: r[0], End: r[0] + r[1]})
	}
	for off := int64(0); off < f.Size; off += addr.PageSize {
		page := want[off:min(off+addr.PageSize, f.Size)]
		got := make([]byte, len(page))
		_, err := in.ReadAt(got, off)
		missing := false
		for _, s := range absent {
			missing = missing || s.Off < off+int64(len(page)) && off < s.End
		}
		switch {
		case missing && !errors.Is(err, unix.EIO):
			t.Fatalf("%s: page at %d is not in memory, and reads: %v", mounted, off, err)
		case !missing && (err != nil || !bytes.Equal(got, page)):
			t.Fatalf("%s: page at %d: %v", mounted, off, err)
		}
	}
}

func checkReadOnly(t *testing.T, at string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(at, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("a file was made: %v", err)
	}
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if err := os.Remove(path); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s was removed: %v", path, err)
		}
		if err := os.Truncate(path, 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s was truncated: %v", path, err)
		}
		return fs.SkipAll
	})
	if err != nil {
		t.Error(err)
	}
}
