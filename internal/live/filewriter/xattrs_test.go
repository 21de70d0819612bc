package filewriter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// aclOf is an ACL: the owner, user 1000 and the mask may do all, the group and others nothing.
func aclOf() string {
	const undefined = 0xffffffff
	b := binary.LittleEndian.AppendUint32(nil, 2) // POSIX_ACL_XATTR_VERSION
	for _, e := range [][3]uint32{{1, 7, undefined}, {2, 7, 1000}, {4, 0, undefined}, {16, 7, undefined}, {32, 0, undefined}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// capabilityOf is CAP_NET_RAW, permitted and effective (include/uapi/linux/capability.h, struct vfs_cap_data).
func capabilityOf() string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint64(b, 1<<13)
	return string(binary.LittleEndian.AppendUint64(b, 0))
}

// xattrs sets extended attributes on the disk.
func (s *scene) xattrs(name string, all map[string]string) {
	s.t.Helper()
	for x, value := range all {
		if err := unix.Lsetxattr(s.path(name), x, []byte(value), 0); err != nil {
			s.t.Fatalf("%s: %s: %v", name, x, err)
		}
	}
}

// hasXattrs checks that a name on the disk has these extended attributes, and no others.
func (s *scene) hasXattrs(name string, want map[string]string) {
	s.t.Helper()
	got := make(map[string]string)
	b := make([]byte, 4096)
	n, err := unix.Llistxattr(s.path(name), b)
	for x := range bytes.SplitSeq(b[:max(0, n)], []byte{0}) {
		if len(x) > 0 {
			value := make([]byte, 4096)
			n, err2 := unix.Lgetxattr(s.path(name), string(x), value)
			got[string(x)], err = string(value[:max(0, n)]), errors.Join(err, err2)
		}
	}
	if err != nil || !maps.Equal(got, want) {
		s.t.Errorf("%s has %q, %v, want %q", name, got, err, want)
	}
}

// hadXattrs adds extended attributes to a file of the plan: it had no others.
func hadXattrs(a *wire.Attr, all map[string]string) {
	a.XattrsAll = true
	for _, name := range slices.Sorted(maps.Keys(all)) {
		a.Xattrs = append(a.Xattrs, wire.Xattr{Name: []byte(name), Value: []byte(all[name])})
	}
}

// TestRestoreXattrs checks that files, directories and links that are created again, or are older on the disk, have exactly
// the extended attributes and the ACLs that they had, whatever the directory that they are in passes on.
func TestRestoreXattrs(t *testing.T) {
	type attrs = map[string]string
	s := newScene(t)
	s.onDisk("d/", "")
	s.onDisk("d/old", strings.Repeat("x", 9000))
	s.onDisk("d/kept", "")
	s.link("d/link", "target")
	s.xattrs("d", attrs{defaultACL: aclOf(), "user.dir": "1"})
	s.xattrs("d/old", attrs{"user.gone": "1", "user.same": "2", "user.other": "3", "security.capability": capabilityOf()})
	s.xattrs("d/kept", attrs{"user.kept": "1"})
	want := map[string]attrs{
		"d":           {defaultACL: aclOf(), "user.dir": "2"},
		"d/old":       {"user.same": "2", "user.other": "4", "user.empty": "", "trusted.new": "5"},
		"d/plain":     {},
		"d/new":       {accessACL: aclOf(), "user.long": strings.Repeat("v", 1000), "security.capability": capabilityOf()},
		"d/made":      {accessACL: aclOf(), defaultACL: aclOf()},
		"d/made/file": {},
		"d/link":      {"trusted.link": "1"},
		"d/link2":     {"trusted.link": "2"},
		"d/device":    {"trusted.overlay.origin": "1"},
	}
	s.was("d", modeDir, 0, 0, "d")
	s.was("d/old", modeFile, 0, 4096, "d/old")
	s.was("d/kept", modeFile, 0, 4096, "d/kept")
	s.was("", modeFile, 0, 4096, "d/plain")
	s.was("", unix.S_IFREG|0o770, 0, 100, "d/new")
	s.was("", unix.S_IFDIR|0o770, 0, 0, "d/made")
	s.was("", modeFile, 0, 0, "d/made/file")
	s.was("d/link", modeLink, 0, 0, "d/link")
	s.was("", modeLink, 0, 0, "d/link2").Target = []byte("target")
	s.was("", unix.S_IFCHR, 0, 0, "d/device")
	for i := range s.attrs {
		if all, ok := want[string(s.attrs[i].Paths[0])]; ok {
			hadXattrs(&s.attrs[i], all)
		}
	}
	modes := make(map[string]uint32)
	for i := range s.attrs {
		modes[string(s.attrs[i].Paths[0])] = s.attrs[i].Mode
	}
	want["d/kept"] = attrs{"user.kept": "1"}
	if r := s.restore(time.Time{}); len(r.Failures) > 0 {
		t.Fatalf("%+v", r)
	}
	for name, all := range want {
		s.hasXattrs(name, all)
		var st unix.Stat_t
		if err := unix.Lstat(s.path(name), &st); err != nil || st.Mode != modes[name] {
			t.Errorf("%s: mode %o, %v, want %o", name, st.Mode, err, modes[name])
		}
	}
}

// TestRestoreXattrsFailing checks that an extended attribute that cannot be set is reported, and costs nothing else.
func TestRestoreXattrsFailing(t *testing.T) {
	s := newScene(t)
	s.onDisk("old", "")
	bad := map[string]string{"user.a": "1", "system.posix_acl_default": aclOf(), accessACL: "no ACL", "no.such": "2"} // a file has no default ACL
	for _, name := range []string{"old", "new"} {
		now := ""
		if name == "old" {
			now = name
		}
		hadXattrs(s.was(now, unix.S_IFREG|0o770, 0, 100, name), bad)
	}
	r := s.restore(time.Time{})
	if len(r.Failures) != 2 || r.Files != 2 {
		t.Errorf("%d files, failures %+v", r.Files, r.Failures)
	}
	for _, f := range r.Failures {
		if !strings.HasPrefix(f.Reason, "its extended attributes are not") || strings.Count(f.Reason, "set ") != 3 {
			t.Errorf("%+v", f)
		}
	}
	for _, name := range []string{"old", "new"} {
		s.has(name, 0, 100)
		s.hasXattrs(name, map[string]string{"user.a": "1"})
		var st unix.Stat_t
		if err := unix.Lstat(s.path(name), &st); err != nil || st.Mode != unix.S_IFREG|0o700 || st.Mtim.Sec != 1e9 {
			t.Errorf("%s: mode %o, %v", name, st.Mode, err)
		}
	}
}

// TestRestoreXattrsLacking checks that extended attributes that are not in memory are reported, unless the disk has them for
// sure, and that nobody gets access for their lack.
func TestRestoreXattrsLacking(t *testing.T) {
	s := newScene(t)
	s.xattrs(".", map[string]string{defaultACL: aclOf()}) // what is created in it must not have that
	for _, name := range []string{"same", "older"} {
		s.onDisk(name, "")
		s.xattrs(name, map[string]string{"user.a": "1", accessACL: aclOf(), "security.capability": capabilityOf()})
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.path("same"), &st); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*wire.Attr{
		"same":   s.was("same", modeFile, 0, 100, "same"),
		"older":  s.was("older", modeFile, 0, 100, "older"),
		"new":    s.was("", unix.S_IFREG|0o670, 0, 100, "new"),
		"no ACL": s.was("", unix.S_IFREG|0o670, 0, 100, "no ACL"),
	} {
		a = &s.attrs[a.File] // was may have moved it
		a.XattrsLack, a.ACL, a.Ctime = "it was being changed", name != "no ACL", wire.Time{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)}
		if name == "older" {
			a.Ctime.Nsec ^= 1
		}
	}
	r := s.restore(time.Time{})
	if len(r.Failures) != 3 || r.Files != 4 {
		t.Errorf("%d files, failures %+v", r.Files, r.Failures)
	}
	for _, f := range r.Failures {
		if f.Reason != "it was being changed; on the disk they may be older, or missing" || f.Inode == s.files[0].Inode {
			t.Errorf("%+v", f)
		}
	}
	for name, want := range map[string]uint32{"same": modeFile, "older": modeFile &^ 0o077, "new": unix.S_IFREG | 0o600, "no ACL": unix.S_IFREG | 0o670} {
		if err := unix.Lstat(s.path(name), &st); err != nil || st.Mode != want {
			t.Errorf("%s: mode %o, %v, want %o", name, st.Mode, err, want)
		}
		s.has(name, 0, 100)
		if _, err := unix.Lgetxattr(s.path(name), accessACL, nil); (err == nil) != (name == "same" || name == "older") {
			t.Errorf("%s: its ACL: %v", name, err)
		}
		if _, err := unix.Lgetxattr(s.path(name), "security.capability", nil); (err == nil) != (name == "same") { // a write takes it
			t.Errorf("%s: its capability: %v", name, err)
		}
	}
}
