package initramfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"

	"understudy.dev/understudy/internal/live/hint"
)

func TestBuildContent(t *testing.T) {
	dir := t.TempDir()
	init := writeELF(t, filepath.Join(dir, "understudy"), nil, false)
	tree := writeTree(t)
	spec := Spec{
		Init: init, ModulesDir: tree, Modules: []string{"virtio-net", "ext4"},
		Files: []File{
			Copy("/bin/busybox", init, 0o755),
			Link("/bin/sh", "busybox"),
			Text("/etc/hosts", "127.0.0.1 localhost\n", 0o644),
			directory("/srv", 0o700),
		},
	}
	var image bytes.Buffer
	if err := build(&image, spec); err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(image.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range records {
		got = append(got, r.Name)
	}
	want := "bin bin/busybox bin/sh etc etc/hosts init lib lib/modules lib/modules/net-failover.ko lib/modules/order " +
		"lib/modules/virtio.ko lib/modules/virtio_net.ko lib/modules/virtio_ring.ko srv"
	if strings.Join(got, " ") != want {
		t.Errorf("entries:\n got %s\nwant %s", strings.Join(got, " "), want)
	}
	checks := map[string]struct {
		mode    uint64
		content string
	}{
		"bin/sh":            {cpio.S_IFLNK | 0o777, "busybox"},
		"etc":               {cpio.S_IFDIR | 0o755, ""},
		"etc/hosts":         {cpio.S_IFREG | 0o644, "127.0.0.1 localhost\n"},
		"lib/modules/order": {cpio.S_IFREG | 0o644, "virtio.ko\nvirtio_ring.ko\nnet-failover.ko\nvirtio_net.ko\n"},
		"srv":               {cpio.S_IFDIR | 0o700, ""},
		"init":              {cpio.S_IFREG | 0o755, read(t, init)},
	}
	for _, r := range records {
		c, ok := checks[r.Name]
		if !ok {
			continue
		}
		content, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
		if err != nil {
			t.Fatal(err)
		}
		if r.Mode != c.mode || string(content) != c.content {
			t.Errorf("%s: mode %#o, %d bytes; want %#o, %d bytes", r.Name, r.Mode, len(content), c.mode, len(c.content))
		}
	}

	// The same inputs in another order, and with other times, give the same bytes.
	spec.Files[0], spec.Files[3] = spec.Files[3], spec.Files[0]
	if err := os.Chtimes(init, fixedTime, fixedTime); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := build(&again, spec); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(image.Bytes(), again.Bytes()) {
		t.Error("equal inputs gave different images")
	}
}

// TestBuildCompressed checks that a tree of modules gives the same image whatever its
// distribution compresses them with.
func TestBuildCompressed(t *testing.T) {
	init := writeELF(t, filepath.Join(t.TempDir(), "static"), nil, false)
	image := func(suffix string) []byte {
		tree := writeTree(t)
		err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
			if suffix != "" && filepath.Ext(path) == ".ko" {
				pack(t, path, suffix)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := build(&out, Spec{Init: init, ModulesDir: tree, Modules: []string{"virtio-net"}}); err != nil {
			t.Fatalf("%s: %v", suffix, err)
		}
		return out.Bytes()
	}
	plain := image("")
	for suffix := range unpackers {
		if !bytes.Equal(image(suffix), plain) {
			t.Errorf("%s: not the image that plain modules give", suffix)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	dir := t.TempDir()
	good := writeELF(t, filepath.Join(dir, "static"), nil, false)
	dynamic := writeELF(t, filepath.Join(dir, "dynamic"), nil, true)
	tree := writeTree(t)
	os.WriteFile(filepath.Join(tree, "kernel", "zram.ko.xz"), []byte("xz"), 0o644)
	os.WriteFile(filepath.Join(tree, "kernel", "lzma.ko.lzma"), nil, 0o644)
	whole := packed(t, []byte("a module"), ".zst")
	os.WriteFile(filepath.Join(tree, "kernel", "cut.ko.zst"), whole[:len(whole)-1], 0o644)
	os.WriteFile(filepath.Join(tree, "kernel", "junk.ko"), []byte("junk"), 0o644)

	tests := []struct {
		name string
		spec Spec
		want []string // all in the message
	}{
		{"no init", Spec{Init: "/nowhere/understudy"}, []string{"/nowhere/understudy", "CGO_ENABLED=0"}},
		{"dynamic init", Spec{Init: dynamic}, []string{"dynamically linked", "CGO_ENABLED=0"}},
		{"no tree", Spec{Init: good, ModulesDir: dir, Modules: []string{"ext4"}}, []string{"modules.builtin", "lib/modules/RELEASE"}},
		{"missing module", Spec{Init: good, ModulesDir: tree, Modules: []string{"virtio_nett"}},
			[]string{"resolve module virtio_nett:", "neither built in nor a file", "Check the spelling"}},
		{"missing dependency", Spec{Init: good, ModulesDir: tree, Modules: []string{"orphan"}},
			[]string{"resolve module gone (needed by orphan)"}},
		{"cycle", Spec{Init: good, ModulesDir: tree, Modules: []string{"egg"}}, []string{"resolve module egg (needed by hen)", "depends on itself"}},
		{"not xz", Spec{Init: good, ModulesDir: tree, Modules: []string{"zram"}}, []string{"zram.ko.xz", "unpack", "Unpack the kernel package again"}},
		{"cut", Spec{Init: good, ModulesDir: tree, Modules: []string{"cut"}}, []string{"cut.ko.zst", "unpack", "unexpected EOF"}},
		{"unknown packing", Spec{Init: good, ModulesDir: tree, Modules: []string{"lzma"}}, []string{"resolve module lzma", "neither built in nor a file"}},
		{"not ELF", Spec{Init: good, ModulesDir: tree, Modules: []string{"junk"}}, []string{"junk.ko", "Unpack the kernel package again"}},
		{"missing file", Spec{Init: good, Files: []File{Copy("/bin/busybox", "/nowhere/busybox", 0o755)}},
			[]string{"add /bin/busybox", "/nowhere/busybox", "Install or build"}},
		{"directory as file", Spec{Init: good, Files: []File{Copy("/bin/busybox", dir, 0o755)}}, []string{"not a regular file"}},
		{"relative", Spec{Init: good, Files: []File{Text("etc/hosts", "", 0o644)}}, []string{"etc/hosts", "absolute path"}},
		{"dot dot", Spec{Init: good, Files: []File{Text("/etc/../init", "", 0o644)}}, []string{"absolute path"}},
		{"twice", Spec{Init: good, Files: []File{Text("/init", "", 0o644)}}, []string{"add /init", "given twice"}},
		{"file as directory", Spec{Init: good, Files: []File{Text("/etc", "", 0o644), Text("/etc/hosts", "", 0o644)}},
			[]string{"/etc is not a directory"}},
		{"device", Spec{Init: good, Files: []File{{Path: "/dev/null", Mode: fs.ModeDevice}}}, []string{"unsupported type"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := build(&out, tt.spec)
			if _, ok := errors.AsType[*hint.Error](err); !ok {
				t.Fatalf("got %v, want an *Error", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("message %q lacks %q", err, w)
				}
			}
			if out.Len() != 0 {
				t.Errorf("%d bytes written before the refusal", out.Len())
			}
		})
	}
}

func TestWriteFileLeavesOldImage(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "guest.cpio")
	init := writeELF(t, filepath.Join(dir, "static"), nil, false)
	if err := WriteFile(image, Spec{Init: init}); err != nil {
		t.Fatal(err)
	}
	before := read(t, image)
	if err := WriteFile(image, Spec{Init: "/nowhere"}); err == nil {
		t.Fatal("no error for a missing init")
	}
	if read(t, image) != before {
		t.Error("a failed build changed the old image")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left behind: %v, %v; want only the image and the binary", left, err)
	}
}
