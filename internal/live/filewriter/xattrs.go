package filewriter

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// errXattrs says that a file may lack what had been changed of its extended attributes.
var errXattrs = errors.New("its extended attributes are not all in memory: on the disk they may be older, or missing")

// maxXattr bounds a list of names, and a value, in bytes (include/uapi/linux/limits.h, XATTR_LIST_MAX and XATTR_SIZE_MAX).
const maxXattr = 64 << 10

// accessACL is the attribute whose lack makes the permissions of a file's group those of its ACL's mask (acl(5)).
const accessACL = "system.posix_acl_access"

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
			if name == accessACL {
				_ = unix.Fchmodat(unix.AT_FDCWD, at, l.attr.Mode&0o7707, 0)
			}
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

// reportXattrs records the extended attributes that could not be set. All else is done.
func (r *restorer) reportXattrs() {
	for _, l := range r.all {
		if l.lacks != nil {
			failed := l.failed
			r.fail(l, fmt.Errorf("its extended attributes are not as they were: %w", l.lacks))
			l.failed = failed
		}
	}
}

// mode is the permissions to be given. Without its ACL, a file that is created again has none for its group.
func (l *unlogged) mode() uint32 {
	mode := l.attr.Mode & 0o7777
	if l.missing && l.attr.XattrsLack && l.attr.ACL {
		mode &^= 0o070
	}
	return mode
}

// lacksXattrs reports whether what the disk has of an inode may lack changes of its extended attributes: each of them changes ctime.
func (l *unlogged) lacksXattrs(st *unix.Stat_t) bool {
	ctime := l.attr.Ctime
	return l.attr.XattrsLack && l.attr.Links > 0 && (l.missing || st.Ctim.Sec != ctime.Sec || st.Ctim.Nsec != int64(ctime.Nsec))
}
