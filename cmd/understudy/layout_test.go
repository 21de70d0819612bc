package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestArrangements reads RAM files of machines whose memory layout differs from that of
// QEMU's q35.
func TestArrangements(t *testing.T) {
	together(t)
	for name, spec := range map[string]scene.Spec{
		"i440fx of 3 GiB":                  {Machine: "pc", Memory: 3 << 30},
		"i440fx of 4 GiB":                  {Machine: "pc", Memory: 4 << 30},
		"q35 with 1 GiB below the hole":    {Machine: "q35,max-ram-below-4g=1G", Memory: 3 << 30},
		"i440fx with 768 MiB below a hole": {Machine: "pc,max-ram-below-4g=768M", Memory: 1 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.HasPrefix(name, "i440fx with") {
				tier.Full(t, "a RAM file of another machine")
			}
			spec.Modules = []string{"ext4"}
			spec.Disks = []scene.Disk{{Size: 64 << 20, Mkfs: []string{"mkfs.ext4", "-qF"}}}
			spec.Script = `
mount -t ext4 /dev/vda /mnt
echo hello >/mnt/file
crash
`
			s := scene.Play(t, spec)
			got := command(t, "salvage", "list", s.RAM)
			if got.err != nil || !strings.Contains(got.out, "file") || !strings.Contains(got.out, "1 unsaved file, 6 bytes unsaved") {
				t.Errorf("%v: %s", got.err, got.out)
			}
			dir := filepath.Join(t.TempDir(), "out")
			got = command(t, "salvage", "extract", s.RAM, "-o", dir)
			if b, err := os.ReadFile(filepath.Join(dir, "vda", "file")); got.err != nil || string(b) != "hello\n" {
				t.Errorf("extracted %q, %v, %v", b, err, got.err)
			}
		})
	}
}
