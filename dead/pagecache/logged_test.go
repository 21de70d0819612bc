package pagecache_test

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
)

// inOwn is the offset of i_flags in an ext4_inode_info, which begins with its inode.
const inOwn = 248

// withOwn returns the types of a world whose ext4_inode_info is known.
func withOwn() []btf.Type {
	u8, u32, u64 := &btf.Int{Name: "u8", Size: 1}, &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	all := types()
	for _, t := range all {
		s, ok := t.(*btf.Struct)
		if !ok || s.Name != "inode" {
			continue
		}
		for _, m := range s.Members {
			if m.Name == "i_rwsem" {
				return append(all, &btf.Struct{Name: "ext4_inode_info", Size: inBytes, Members: []btf.Member{
					field("vfs_inode", 0, s), field("i_data", 0, &btf.Array{Index: u32, Type: u8, Nelems: 60}),
					field("i_flags", inOwn, u64), field("i_reserved_data_blocks", 0, u32), field("i_data_sem", inRwsem, m.Type),
				}})
			}
		}
	}
	return all
}

// TestLogged checks which bytes of a file are unsaved because only the journal brings them to the disk.
func TestLogged(t *testing.T) {
	const (
		logged, up        = uint64(1)<<21 | 1<<16 | 1<<bhUptodate, uint64(1) << bhUptodate
		filled, private   = uint64(1) << pgUptodate, uint64(1) << pgPrivateBit
		journaled, inline = 0x4000, 0x10000000
		ordered, all      = 0x8000800, 0x400
	)
	for name, tc := range map[string]struct {
		options uint32 // of the mount
		own     uint64 // flags of the file
		page    uint64 // flags of its page 5, without one if zero
		states  [4]uint64
		clean   bool // the inode was not changed
		dirty   bool // an ordinary walk finds it
		want    []string
		found   bool
	}{
		"data=journal":                      {options: all, page: filled | private, states: [4]uint64{up, logged, up, logged}, want: []string{"a[21504,22528)", "a[23552,24576)"}, found: true},
		"data=journal, nothing changed":     {options: all, page: filled | private, states: [4]uint64{up, up, up, up}, found: true},
		"data=journal, without buffers":     {options: all, page: filled, found: true},
		"data=journal, buffers astray":      {options: all, page: private, want: []string{"5+1 implausible buffers"}, found: true},
		"chattr +j":                         {options: 0x800, own: journaled, page: private, states: [4]uint64{0, logged, 0, 0}, want: []string{"a[21504,22528)"}, found: true},
		"beside chattr +j":                  {options: 0x800, page: filled | private, states: [4]uint64{up, up, up, up}},
		"delayed allocation":                {options: ordered, page: filled | private, states: [4]uint64{up, up, up, up}},
		"inline":                            {options: 0x800, own: inline, page: filled, want: []string{"a[20480,24576)"}, found: true},
		"inline, saved":                     {options: 0x800, own: inline, page: filled, clean: true, found: true},
		"inline, not in the page cache":     {options: 0x800, own: inline, want: []string{"0+1 page not uptodate"}, found: true},
		"inline, dirty, delayed allocation": {options: ordered, own: inline, page: filled, dirty: true, want: []string{"a[20480,24576)"}, found: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.PutU32(w.u64(w.sb+sbInfo)+sbOptions, tc.options)
			file := w.file(9, "file", 90*addr.PageSize)
			if !tc.dirty {
				w.heads(w.wb+24, file+inIO)
			}
			w.PutU64(file+inOwn, tc.own)
			if tc.page != 0 {
				p := w.page(file, 5, tc.page, 'a')
				if tc.page&private != 0 {
					w.PutU64(p+pgPrivate, 8)
				}
				if tc.states != [4]uint64{} {
					w.buffers(p, w.data(p), tc.states)
				}
				w.head(file, 2+w.node(file, 0, 0, 0, map[int]addr.Virt{5: p}))
				w.PutU64(file+inPages, 1)
			}
			w.Finish(withOwn()...)
			c, s := w.open(t)
			found := false
			for i, err := range c.DirtyOr(s, nil) {
				if err != nil {
					t.Fatal(err)
				}
				found = true
				if got := listed(c.Logged(s, i, !tc.clean), w.Mem); !slices.Equal(got, tc.want) {
					t.Errorf("got %q, want %q", got, tc.want)
				}
				if got := unsaved(c, s, i, w.Mem); got != nil {
					t.Errorf("without a mark in the tree: %q", got)
				}
			}
			if found != tc.found {
				t.Errorf("found: %v", found)
			}
		})
	}
}
