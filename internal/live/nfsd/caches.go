package nfsd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// fsidNumber is FSID_NUM (fs/nfsd/nfsfh.h): a handle that names its file system by
// the number of the option fsid.
const fsidNumber = 1

// cacheLife is how long the kernel uses what we tell it before it asks mountd,
// which gives its own answers the same lifetime (default_ttl, nfs-utils).
const cacheLife = 30 * time.Minute

// fillCaches tells the kernel of an export before its first client asks, so that
// no client has to wait for mountd: where the file system of a handle is, and the
// export options, as far as we can give them exactly as mountd would. If the
// kernel accepts this, the directory can be exported.
func fillCaches(e Export, table []tableEntry) error {
	expiry := time.Now().Add(cacheLife).Unix()
	for _, c := range e.Clients {
		n, ok := c.number()
		if !ok {
			continue // a UUID, for which all disks must be searched: left to mountd
		}
		if err := introduce(c.Name, e.Path); err != nil {
			return fmt.Errorf("introduce %s to nfsd: %w", c.Name, err)
		}
		options, ok := optionsOf(table, e.Path, c.Name)
		if !ok {
			continue
		}
		line := fmt.Sprintf("%s %s %d %s\n", quote(c.Name), quote(e.Path), expiry, options)
		if err := tell("nfsd.export", line); err != nil {
			return fmt.Errorf("export %s to %s: %w", e.Path, c.Name, err)
		}
		id := binary.NativeEndian.AppendUint32(nil, n)
		line = fmt.Sprintf("%s %d \\x%x %d %s\n", quote(c.Name), fsidNumber, id, expiry, quote(e.Path))
		if err := tell("nfsd.fh", line); err != nil {
			return fmt.Errorf("tell nfsd where fsid %d of %s is: %w", n, c.Name, err)
		}
	}
	return nil
}

// forgetClients makes the kernel ask mountd anew for each address, as it does for an
// unknown one. The kernel requires a number, ignores its value, and drops every entry
// that it has at that moment (write_flush, net/sunrpc/cache.c).
func forgetClients() error {
	return os.WriteFile("/proc/net/rpc/auth.unix.ip/flush", []byte("1\n"), 0)
}

func tell(cache, line string) error {
	return os.WriteFile("/proc/net/rpc/"+cache+"/channel", []byte(line), 0)
}

// introduce makes a client known to the kernel, which accepts nothing about unknown
// clients. Asking for a file handle does that (write_filehandle, fs/nfsd/nfsctl.c),
// whether or not there is an export yet.
func introduce(client, path string) error {
	const size = 64 // of a handle, NFS3_FHSIZE of RFC 1813
	line := fmt.Sprintf("%s %s %d\n", quote(client), quote(path), size)
	err := os.WriteFile(filepath.Join(nfsdFS, "filehandle"), []byte(line), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// quote writes a word as the kernel's caches read it: characters that would end the word,
// and the backslash, as three octal digits (qword_get, net/sunrpc/cache.c).
func quote(s string) string {
	var b []byte
	for i := range len(s) {
		switch c := s[i]; c {
		case ' ', '\t', '\n', '\\':
			b = fmt.Appendf(b, "\\%03o", c)
		default:
			b = append(b, c)
		}
	}
	return string(b)
}
