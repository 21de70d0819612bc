package ram_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// splitAt is where the model is split in three: within a piece of memory, and in the hole.
var splitAt = []addr.PFN{0, 0x150, 0x8_0000, 0x10_0014}

// split writes the parts of a split dump.
func split(t testing.TB, k ramtest.Kdump, m *model) []string {
	t.Helper()
	var paths []string
	for i := range splitAt[1:] {
		path := filepath.Join(t.TempDir(), "part")
		k.Start, k.End = splitAt[i], splitAt[i+1]
		if err := ramtest.Create(path, k, m.pieces); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestSplit(t *testing.T) {
	for _, tc := range []struct {
		name    string
		version int32
	}{{"version 6", 6}, {"version 4", 4}} {
		t.Run(tc.name, func(t *testing.T) {
			model := newModel(17)
			model.excluded = someFrames
			k := ramtest.Kdump{Codec: ramtest.Zlib, Level: 17, Excluded: someFrames, Note: []byte(noteText), Version: tc.version}
			p := split(t, k, model)
			for _, order := range [][]string{{p[0], p[1], p[2]}, {p[2], p[0], p[1]}, {pack(t, "gzip", p[0], ".gz"), p[2], p[1]}} {
				mem, err := ram.OpenFiles(order...)
				if err != nil {
					t.Fatal(err)
				}
				model.checkDescription(t, mem, ram.Info{Format: "kdump-compressed (zlib) in 3 files", Level: 17, LevelKnown: true})
				model.checkTouched(t, mem)
				model.checkViews(t, mem, 5)
				if err := mem.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestSplitRefused checks that files that are not all the parts of one dump are refused for the right reason.
func TestSplitRefused(t *testing.T) {
	model := newModel(17)
	k := ramtest.Kdump{Codec: ramtest.Zlib, Note: []byte(noteText)}
	p := split(t, k, model)
	k.Note = []byte(noteText + "KERNELOFFSET=1000000\n")
	other := split(t, k, model)
	k.Note, k.Excluded = []byte(noteText), someFrames
	less := split(t, k, model)
	whole := write(t, ramtest.Kdump{Codec: ramtest.Zlib}, model)
	for _, tc := range []struct {
		paths []string
		want  string
	}{
		{p[:1], "name all of its parts"},
		{p[:2], "page frames 0x80000 to 0x100014 is missing"},
		{p[1:], "page frames 0x0 to 0x150 is missing"},
		{[]string{p[0], p[2]}, "page frames 0x150 to 0x80000 is missing"},
		{[]string{p[0], p[1], p[2], p[1]}, "two of the files have page frame 0x150"},
		{[]string{p[0], p[1], other[2]}, "not of one dump"},
		{[]string{p[0], p[1], less[2]}, "not of one dump"},
		{[]string{p[0], p[1], whole}, "no part of a split dump"},
		{[]string{p[0], write(t, ramtest.LiME{}, model)}, "nothing else comes in parts"},
	} {
		mem, err := ram.OpenFiles(tc.paths...)
		if err == nil {
			mem.Close()
		}
		if !errors.Is(err, ram.ErrFormat) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, want %q", tc.paths, err, tc.want)
		}
	}
}
