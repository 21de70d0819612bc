package filewriter

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// errXattrs says that a file may lack what had been changed of its extended attributes.
var errXattrs = errors.New("its extended attributes are not all in memory: on the disk they may be older, or missing")

// maxXattr bounds a list of names, and a value, in bytes (include/uapi/linux/limits.h, XATTR_LIST_MAX and XATTR_SIZE_MAX).
const maxXattr = 64 << 10

// setXattrs gives what is at a path the extended attributes that it had, if all of them are known. What has them already is not touched.
func setXattrs(at string, a *wire.Attr) error {
	if !a.XattrsAll {
		return nil
	}
	// XFS also shows an ACL as what it is on the disk (fs/xfs/xfs_xattr.c, xfs_xattr_put_listent).
	had := map[string]bool{"trusted.SGI_ACL_FILE": true, "trusted.SGI_ACL_DEFAULT": true}
	for _, x := range a.Xattrs {
		had[string(x.Name)] = true
	}
	names, err := readXattr(func(b []byte) (int, error) { return unix.Listxattr(at, b) })
	if errors.Is(err, unix.ENOTSUP) && len(a.Xattrs) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	for name := range bytes.SplitSeq(names, []byte{0}) {
		if len(name) == 0 || had[string(name)] {
			continue
		}
		if err := unix.Removexattr(at, string(name)); err != nil {
			return fmt.Errorf("remove extended attribute %q: %w", name, err)
		}
	}
	for _, x := range a.Xattrs {
		name := string(x.Name)
		now, err := readXattr(func(b []byte) (int, error) { return unix.Getxattr(at, name, b) })
		if err == nil && bytes.Equal(now, x.Value) {
			continue
		}
		if err := unix.Setxattr(at, name, x.Value, 0); err != nil {
			return fmt.Errorf("set extended attribute %q: %w", name, err)
		}
	}
	return nil
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

// mode is the permissions to be given. Those of an ACL's group class may be wider than those of the group (acl(5)): without the ACL,
// a file that is created again has none for its group.
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
