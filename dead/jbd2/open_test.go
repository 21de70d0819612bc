package jbd2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// TestOpenRefused checks that journals that are not supported are refused, and why.
func TestOpenRefused(t *testing.T) {
	base := kinds[5].fresh(t)
	be := binary.BigEndian
	super := func(edit func([]byte)) func(testing.TB, *jbd2.Recording) {
		return func(t testing.TB, d *jbd2.Recording) {
			if err := jbd2.EditSuper(d, edit); err != nil {
				t.Fatal(err)
			}
		}
	}
	fs := func(edit func([]byte)) func(testing.TB, *jbd2.Recording) {
		return func(t testing.TB, d *jbd2.Recording) {
			b, err := ext4.ReadSuper(d)
			if err != nil {
				t.Fatal(err)
			}
			edit(b)
			if b, err = ext4.SetRecover(b, false); err != nil { // for its checksum
				t.Fatal(err)
			}
			if _, err := d.WriteAt(b, ext4.SuperOffset); err != nil {
				t.Fatal(err)
			}
		}
	}
	id := addr.UUID{1, 2, 3}
	for _, tc := range []struct {
		name string
		edit func(testing.TB, *jbd2.Recording)
		want string // in the error; empty means that there is none
	}{
		{"as it is", super(func([]byte) {}), ""},
		{"external", fs(func(b []byte) { clear(b[0xe0:0xe4]); copy(b[0xd0:], id[:]) }), "the journal is on another device, of UUID " + id.String()},
		{"internal and external", fs(func(b []byte) { b[0xe4] = 1 }), "both"},
		{"no journal", fs(func(b []byte) { b[0x5c] &^= 4 }), jbd2.ErrNoJournal.Error()},
		{"inode that is none", fs(func(b []byte) { b[0xe0] = 2 }), "is no journal"},
		{"inode beyond the last", fs(func(b []byte) { b[0xe3] = 2 }), "there are"},
		{"no magic", super(func(b []byte) { b[0]++ }), "no magic number"},
		{"another kind of block", super(func(b []byte) { b[7] = 1 }), "no magic number"},
		{"version 1", super(func(b []byte) { b[7] = 3 }), ""},
		{"block size", super(func(b []byte) { be.PutUint32(b[0x0c:], 4096) }), "blocks of 4096 bytes in a file system with blocks of 1024"},
		{"longer than its file", super(func(b []byte) { be.PutUint32(b[0x10:], 1025) }), "1025 blocks in a file of 1024"},
		{"too short", super(func(b []byte) { be.PutUint32(b[0x10:], 1023) }), "log from block 1 to 1023"},
		{"no first block", super(func(b []byte) { be.PutUint32(b[0x14:], 0) }), "log from block 0"},
		{"first block too late", super(func(b []byte) { be.PutUint32(b[0x14:], 2) }), "log from block 2"},
		{"start beyond the log", super(func(b []byte) { be.PutUint32(b[0x1c:], 1024) }), "starts at block 1024"},
		{"unknown feature", super(func(b []byte) { b[0x2b] |= 0x40 }), "incompatible 0x40"},
		{"unknown feature for writing", super(func(b []byte) { b[0x2f] |= 2 }), "for writing 0x2"},
		{"two kinds of checksums", super(func(b []byte) { b[0x27] |= 1 }), "more than one kind"},
		{"unknown checksums", super(func(b []byte) { b[0x50] = 1 }), "unknown type 1"},
		{"fast commits of no length", super(func(b []byte) { b[0x2b] |= 0x20 }), ""},
		{"fast commits of all", super(func(b []byte) { b[0x2b] |= 0x20; be.PutUint32(b[0x54:], 1025) }), "1025 blocks for fast commits in a journal of 1024"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := jbd2.NewRecording(bytes.NewReader(base))
			tc.edit(t, d)
			_, err := jbd2.Open(d)
			if (err != nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
			var external *jbd2.ExternalError
			if tc.name == "external" && (!errors.As(err, &external) || external.UUID != id) {
				t.Error("it does not name the journal")
			}
			if tc.name == "no journal" && !errors.Is(err, jbd2.ErrNoJournal) {
				t.Error("it is not ErrNoJournal")
			}
		})
	}
	t.Run("checksum", func(t *testing.T) {
		b := slices.Clone(base)
		at, err := load(t, jbd2.NewRecording(bytes.NewReader(b))).Where(0)
		if err != nil {
			t.Fatal(err)
		}
		b[int(at)*1024+0x44]++
		if _, err := jbd2.Open(jbd2.NewRecording(bytes.NewReader(b))); !errors.Is(err, ext4.ErrChecksum) {
			t.Error(err)
		}
	})
}

// TestOpenFile makes files with debugfs that cannot be a journal.
func TestOpenFile(t *testing.T) {
	for _, tc := range []struct{ name, kind, command, want string }{
		{"no links", "v3", "set_inode_field <8> links_count 0", "0 links"},
		{"a directory", "v3", "set_inode_field <8> mode 040600", "is no journal"},
		{"encrypted", "v3", "set_inode_field <8> flags 0x80800", "is no journal"},
		{"a hole", "v3", "punch <8> 100 200", "a hole"},
		{"a hole without extents", "none", "punch <8> 100 200", "a hole"},
		{"a file that ends early", "v3", "set_inode_field <8> size 1000000", "1024 blocks in a file of 976"},
		{"one block twice", "none", "set_inode_field <8> block[3] 10\nset_inode_field <8> block[7] 10", "are both at block 10"},
		{"beyond the end", "none", "set_inode_field <8> block[3] 20000", "at block 20000"},
		{"unwritten", "v3", "extent_open <8>\nroot\nreplace_node --uninit 0 1024 900\nextent_close", "never written"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.name == tc.kind })]
			path := save(t, k.fresh(t), jbd2.NewRecording(bytes.NewReader(nil)))
			commands := path + ".commands"
			if err := os.WriteFile(commands, []byte(tc.command+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			out := run(t, "debugfs", "-w", "-f", commands, path)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := jbd2.Open(jbd2.NewRecording(f)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v; debugfs: %s", err, out)
			}
		})
	}
}
