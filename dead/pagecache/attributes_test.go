package pagecache

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
)

// sfEntry is an attribute in an inode of XFS.
type sfEntry struct {
	flags       byte
	name, value string
}

// sfOf makes the attribute fork of an inode of XFS.
func sfOf(entries ...sfEntry) []byte {
	b := []byte{0, 0, byte(len(entries)), 0}
	for _, e := range entries {
		b = append(b, byte(len(e.name)), byte(len(e.value)), e.flags)
		b = append(append(b, e.name...), e.value...)
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)))
	return b
}

// dirItem makes an attribute of btrfs, as it is in an item.
func dirItem(name, value string) []byte {
	b := make([]byte, 30)
	b[29] = 8 // BTRFS_FT_XATTR
	binary.LittleEndian.PutUint16(b[25:], uint16(len(value)))
	binary.LittleEndian.PutUint16(b[27:], uint16(len(name)))
	return append(append(b, name...), value...)
}

// The ACL user::rwx, user:1000:r-x, group::r--, mask::rwx, other::---: of XFS, which leaves the ID of some entries as it is, and of
// programs.
var (
	xfsACL = "\x00\x00\x00\x05" +
		"\x00\x00\x00\x01\x00\x00\x00\x00\x00\x07\x00\x00" +
		"\x00\x00\x00\x02\x00\x00\x03\xe8\x00\x05\x00\x00" +
		"\x00\x00\x00\x04\x12\x34\x56\x78\x00\x04\x00\x00" +
		"\x00\x00\x00\x10\x00\x00\x00\x00\x00\x07\x00\x00" +
		"\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00"
	programsACL = "\x02\x00\x00\x00" +
		"\x01\x00\x07\x00\xff\xff\xff\xff" +
		"\x02\x00\x05\x00\xe8\x03\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x07\x00\xff\xff\xff\xff" +
		"\x20\x00\x00\x00\xff\xff\xff\xff"
)

// byName is a list of attributes as a map.
func byName(t *testing.T, list []Attribute) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, a := range list {
		if _, twice := out[a.Name]; twice {
			t.Errorf("%q is there twice", a.Name)
		}
		out[a.Name] = string(a.Value)
	}
	return out
}

func TestParseXFSAttributes(t *testing.T) {
	long := strings.Repeat("v", 255)
	all := sfOf(
		sfEntry{0, "a", "1"}, sfEntry{xfsAttrRoot, "overlay.opaque", "y"}, sfEntry{xfsAttrSecure, "selinux", "label\x00"}, sfEntry{0, "empty", ""},
		sfEntry{xfsAttrRoot, "SGI_ACL_FILE", xfsACL}, sfEntry{xfsAttrRoot, "SGI_ACL_DEFAULT", xfsACL}, sfEntry{0, "SGI_ACL_FILE", "a user's"},
		sfEntry{xfsAttrParent, "name", "parent"}, sfEntry{xfsAttrIncomplete, "a", "half"}, sfEntry{0, strings.Repeat("n", 255), long},
	)
	got, err := parseXFSAttributes(all)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"user.a": "1", "trusted.overlay.opaque": "y", "security.selinux": "label\x00", "user.empty": "", accessACL: programsACL,
		defaultACL: programsACL, "user.SGI_ACL_FILE": "a user's", "user." + strings.Repeat("n", 255): long,
	}
	if got := byName(t, got); !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, err := parseXFSAttributes(sfOf()); err != nil || len(got) > 0 {
		t.Errorf("none: %v, %v", got, err)
	}
	one := sfOf(sfEntry{0, "name", "value"})
	for name, b := range map[string][]byte{
		"nothing":                  nil,
		"no header":                one[:3],
		"short":                    one[:len(one)-1],
		"long":                     append(slices.Clone(one), 0),
		"an entry more":            set(one, 2, 2),
		"a value behind the end":   set(one, 5, 6),
		"a name behind the end":    set(one, 4, 255),
		"no name":                  set(one, 4, 0),
		"ACL of no length":         sfOf(sfEntry{xfsAttrRoot, "SGI_ACL_FILE", ""}),
		"ACL with part of one":     sfOf(sfEntry{xfsAttrRoot, "SGI_ACL_FILE", xfsACL[:40]}),
		"ACL that counts too many": sfOf(sfEntry{xfsAttrRoot, "SGI_ACL_FILE", "\xff" + xfsACL[1:]}),
	} {
		if got, err := parseXFSAttributes(b); err == nil {
			t.Errorf("%s: no error, but %v", name, got)
		}
	}
}

// leafEntry is an attribute in a block of XFS.
type leafEntry struct {
	flags       byte
	name, value string
}

// xfsLeaf makes a block of XFS with attributes of an inode.
func xfsLeaf(sector, ino uint64, entries ...leafEntry) []byte {
	b := make([]byte, 1024)
	binary.BigEndian.PutUint16(b[8:], xfsLeafMagic)
	binary.BigEndian.PutUint64(b[16:], sector)
	binary.BigEndian.PutUint64(b[48:], ino)
	binary.BigEndian.PutUint16(b[56:], uint16(len(entries)))
	end := len(b)
	for n, e := range entries {
		end -= 3 + len(e.name) + len(e.value)
		binary.BigEndian.PutUint16(b[80+8*n+4:], uint16(end))
		b[80+8*n+6] = e.flags
		binary.BigEndian.PutUint16(b[end:], uint16(len(e.value)))
		b[end+2] = byte(len(e.name))
		copy(b[end+3:], e.name+e.value)
	}
	return b
}

func TestParseXFSLeaf(t *testing.T) {
	const sector, ino = 7 << 20, 131
	local := byte(xfsAttrLocal)
	b := xfsLeaf(sector, ino, leafEntry{local, "a", "1"}, leafEntry{local | xfsAttrSecure, "NTACL", strings.Repeat("n", 400)},
		leafEntry{local | xfsAttrRoot, "SGI_ACL_FILE", xfsACL}, leafEntry{local | xfsAttrIncomplete, "half", "x"}, leafEntry{xfsAttrIncomplete, "half, of blocks", ""}, leafEntry{local, "empty", ""})
	got, err := parseXFSLeaf(b, sector, ino)
	if err != nil {
		t.Fatal(err)
	}
	if got := byName(t, got); !maps.Equal(got, map[string]string{"user.a": "1", "security.NTACL": strings.Repeat("n", 400), accessACL: programsACL, "user.empty": ""}) {
		t.Errorf("got %q", got)
	}
	node := xfsLeaf(sector, ino)
	binary.BigEndian.PutUint16(node[8:], xfsNodeMagic)
	if got, err := parseXFSLeaf(node, sector, ino); err != nil || got != nil {
		t.Errorf("a node: %v, %v", got, err)
	}
	one := xfsLeaf(sector, ino, leafEntry{local, "name", "value"})
	end := len(one) - 3 - len("name") - len("value")
	for name, b := range map[string][]byte{
		"nothing":                 nil,
		"no header":               one[:79],
		"of another inode":        xfsLeaf(sector, ino+1),
		"of another place":        xfsLeaf(sector+1, ino),
		"another type":            set(one, 9, 0),
		"too many":                set(one, 56, 0xff),
		"a name among the others": set(set(one, 84, 0), 85, 87),
		"a name at the end":       set(set(one, 84, 3), 85, 0xfe),
		"a name behind the end":   set(one, end+2, 10),
		"no name":                 set(one, end+2, 0),
		"a value behind the end":  set(one, end+1, 6),
		"a value elsewhere":       xfsLeaf(sector, ino, leafEntry{0, "large", ""}),
	} {
		if got, err := parseXFSLeaf(b, sector, ino); err == nil {
			t.Errorf("%s: no error, but %v", name, got)
		}
	}
}

func TestParseBtrfsAttributes(t *testing.T) {
	item := append(dirItem("user.a", "1"), dirItem("system.posix_acl_access", programsACL)...)
	got, err := parseBtrfsAttributes(append(item, dirItem("user.empty", "")...))
	if err != nil {
		t.Fatal(err)
	}
	if got := byName(t, got); !maps.Equal(got, map[string]string{"user.a": "1", accessACL: programsACL, "user.empty": ""}) {
		t.Errorf("got %q", got)
	}
	for name, b := range map[string][]byte{
		"no header":            item[:29],
		"half of the second":   item[:len(item)-1],
		"no name":              set(item, 27, 0),
		"value behind the end": set(item, 26, 255),
	} {
		if got, err := parseBtrfsAttributes(b); err == nil {
			t.Errorf("%s: no error, but %v", name, got)
		}
	}
}

// TestMayHave: the blocks that may have a key are those that begin at or before it and, behind these, before the end.
func TestMayHave(t *testing.T) {
	block := &btrfsBlock{children: []btrfsChild{
		{key: btrfsKey{256, 1, 0}, at: 1}, {key: btrfsKey{300, 12, 0}, at: 2}, {key: btrfsKey{300, 24, 7}, at: 3},
		{key: btrfsKey{300, 24, 9}, at: 4}, {key: btrfsKey{301, 24, 0}, at: 5}, {key: btrfsKey{400, 1, 0}, at: 6},
	}}
	for ino, want := range map[uint64]string{255: "", 256: "1", 299: "1", 300: "234", 301: "5", 302: "5", 400: "6", 401: "6"} {
		got := ""
		for _, c := range block.mayHave(btrfsKey{addr.Ino(ino), btrfsAttributeKey, 0}, btrfsKey{addr.Ino(ino), btrfsAttributeKey + 1, 0}) {
			got += string(rune('0' + c.at))
		}
		if got != want {
			t.Errorf("inode %d: blocks %s, want %s", ino, got, want)
		}
	}
}

// FuzzAttributes: no bytes end the program, or make attributes that are longer than they are.
func FuzzAttributes(f *testing.F) {
	f.Add(sfOf(sfEntry{0, "a", "1"}, sfEntry{xfsAttrRoot, "SGI_ACL_FILE", xfsACL}), true)
	f.Add(append(dirItem("user.a", "1"), dirItem("user.b", "2")...), false)
	f.Add(extentLeaf(300, nil), false)
	f.Add(xfsLeaf(8, 131, leafEntry{xfsAttrLocal, "a", "1"}, leafEntry{xfsAttrLocal | xfsAttrRoot, "SGI_ACL_FILE", xfsACL}), true)
	f.Fuzz(func(t *testing.T, b []byte, xfs bool) {
		was := bytes.Clone(b)
		list, err := parseBtrfsAttributes(b)
		if xfs {
			list, err = parseXFSAttributes(b)
			if len(b) >= 56 {
				list, err = parseXFSLeaf(b, binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[48:]))
			}
		}
		if err == nil {
			n := 0
			for _, a := range list {
				n += len(a.Value)
			}
			if n > len(b) {
				t.Errorf("%d bytes of values from %d", n, len(b))
			}
		}
		if !bytes.Equal(b, was) {
			t.Error("the bytes were changed")
		}
		if block, err := parseBtrfsBlock(b); err == nil && block.level == 0 {
			_, _ = attributesIn(b)
		}
	})
}
