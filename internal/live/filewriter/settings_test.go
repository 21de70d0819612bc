package filewriter

import (
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

// TestSettings checks which of the settings that an inode had it gets, and when: only what memory tells, and hints of extent sizes only as
// long as a regular file is empty.
func TestSettings(t *testing.T) {
	const noDump, extSize, inherit, cow, prealloc = 0x80, 0x800, 0x1000, 0x10000, 0x2
	all := wire.Settings{Flags: noDump | extSize | cow, Known: 0x1fef8, Project: 42, ExtentSize: 65536, CowExtentSize: 131072}
	now := settings{flags: prealloc | lockingFlags, extents: 3, project: 7, extentSize: 4096}
	for name, tt := range map[string]struct {
		had            wire.Settings
		regular, hints bool
		want           settings
	}{
		"nothing known":      {regular: true, want: settings{flags: prealloc, extents: 3, project: 7, extentSize: 4096}},
		"locked":             {had: wire.Settings{Flags: lockingFlags}, want: now},
		"file":               {had: all, regular: true, want: settings{flags: prealloc | noDump, extents: 3, project: 42, extentSize: 4096}},
		"empty file":         {had: all, regular: true, hints: true, want: settings{flags: prealloc | lockingFlags | extSize | cow, extents: 3, project: 7, extentSize: 65536, cowSize: 131072}},
		"directory":          {had: wire.Settings{Flags: inherit, Known: all.Known, Project: 42, ExtentSize: 65536}, want: settings{flags: prealloc | inherit, extents: 3, project: 42, extentSize: 65536}},
		"only flags":         {had: wire.Settings{Flags: noDump, Known: 0xf8}, want: settings{flags: prealloc | noDump, extents: 3, project: 7, extentSize: 4096}},
		"not known, but set": {had: wire.Settings{Flags: 0x4000, Known: noDump}, want: settings{flags: prealloc, extents: 3, project: 7, extentSize: 4096}},
	} {
		got := now.with(tt.had, tt.regular)
		if tt.hints {
			got = now.withHints(tt.had)
		}
		if got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}
