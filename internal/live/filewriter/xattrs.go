package filewriter

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ownerOnly are the permissions that remain of those of a file that may lack its ACL. Those of its group are the ACL's mask, and the ACL may
// deny to somebody what others may do (acl(5)).
const ownerOnly = 0o7700

// maxXattr bounds a list of names, and a value, in bytes (include/uapi/linux/limits.h, XATTR_LIST_MAX and XATTR_SIZE_MAX).
const maxXattr = 64 << 10

// The attributes with ACLs.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// dropInherited takes from what was just created the ACLs that it has from its directory. setXattrs does it if all attributes are known.
func (l *unlogged) dropInherited(at string) error {
	if l.attr.XattrsAll {
		return nil
	}
	for _, name := range []string{accessACL, defaultACL} {
		if err := unix.Removexattr(at, name); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("remove inherited %q: %w", name, err)
		}
	}
	return nil
}

// setXattrs gives what is at a path the extended attributes that it had, if all of them are known. What has them already is not
// touched. One that cannot be set, or removed, does not keep the others from it.
func (l *unlogged) setXattrs(at string) {
	l.lacks = nil
	if !l.attr.XattrsAll {
		return
	}
	fail := func(what, name string, err error) {
		l.lacks = errors.Join(l.lacks, fmt.Errorf("%s %q: %w", what, name, err))
	}
	// XFS also shows an ACL as what it is on the disk (fs/xfs/xfs_xattr.c, xfs_xattr_put_listent).
	had := map[string]bool{"trusted.SGI_ACL_FILE": true, "trusted.SGI_ACL_DEFAULT": true}
	for _, x := range l.attr.Xattrs {
		had[string(x.Name)] = true
	}
	names, err := readXattr(func(b []byte) (int, error) { return unix.Listxattr(at, b) })
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		fail("list those on the disk of", at, err)
	}
	for name := range bytes.SplitSeq(names, []byte{0}) {
		if len(name) == 0 || had[string(name)] {
			continue
		}
		if err := unix.Removexattr(at, string(name)); err != nil {
			fail("remove", string(name), err)
			l.unsure = l.unsure || string(name) == accessACL
		}
	}
	for _, x := range l.attr.Xattrs {
		name := string(x.Name)
		now, err := readXattr(func(b []byte) (int, error) { return unix.Getxattr(at, name, b) })
		if err == nil && bytes.Equal(now, x.Value) {
			continue
		}
		if err := unix.Setxattr(at, name, x.Value, 0); err != nil {
			fail("set", name, err)
			l.unsure = l.unsure || name == accessACL
		}
	}
	if l.unsure {
		if err := unix.Fchmodat(unix.AT_FDCWD, at, l.mode(), 0); err != nil {
			fail("take permissions of", at, err)
		}
	}
}

// readXattr reads what a call puts into a buffer of which it returns the length; without a buffer, it returns how long that must be.
func readXattr(read func(b []byte) (int, error)) ([]byte, error) {
	n, err := read(nil)
	if err != nil || n == 0 {
		return nil, err
	}
	b := make([]byte, min(n, maxXattr))
	n, err = read(b)
	return b[:max(0, n)], err
}

// reportXattrs records the extended attributes that could not be set.
func (r *restorer) reportXattrs() {
	for _, l := range r.all {
		if l.lacks != nil {
			r.warn(l, fmt.Errorf("its extended attributes are not as they were: %w", l.lacks))
		}
	}
}

// mode is the permissions to be given.
func (l *unlogged) mode() uint32 {
	if l.unsure {
		return l.attr.Mode & ownerOnly
	}
	return l.attr.Mode & 0o7777
}

// hasMode reports whether an inode has the type and the permissions that were, or may have been, given to what was created for a missing
// one.
func (l *unlogged) hasMode(mode uint32) bool {
	return mode == l.attr.Mode || mode == l.kind()|l.attr.Mode&ownerOnly
}

// warnOfXattrs records that extended attributes may be lost, unless the inode on the disk has the same ctime, which each change of them sets;
// st is nil if it is missing.
func (r *restorer) warnOfXattrs(l *unlogged, st *unix.Stat_t) {
	ctime := l.attr.Ctime
	if l.attr.XattrsLack == "" || l.attr.Links == 0 || st != nil && st.Ctim.Sec == ctime.Sec && st.Ctim.Nsec == int64(ctime.Nsec) {
		return
	}
	l.stale, l.unsure = true, l.attr.ACL
	r.warn(l, fmt.Errorf("%s; on the disk they may be older, or missing", l.attr.XattrsLack))
}
