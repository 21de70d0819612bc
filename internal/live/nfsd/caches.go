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

// cacheLife is how long what we tell the kernel holds before it asks mountd,
// which gives its own answers as long (default_ttl, nfs-utils).
const cacheLife = 30 * time.Minute

// fillCaches has the kernel know an export before its first client asks, so that
// none has to wait for mountd: where the file system of a handle is, and with what
// options it is exported, as far as we can say them as mountd would. That the
// kernel takes it is the proof that the directory can be exported.
func fillCaches(e Export, table []tableEntry) error {
	expiry := time.Now().Add(cacheLife).Unix()
	for _, c := range e.Clients {
		n, ok := c.number()
		if !ok {
			continue // by UUID, which takes a look at all disks: mountd's work
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

// forgetClients has the kernel ask mountd anew for each address, as it does for one
// that it has not heard of. The time is compared with that of entries, which are
// dropped if they are not younger (write_flush, net/sunrpc/cache.c).
func forgetClients() error {
	return os.WriteFile("/proc/net/rpc/auth.unix.ip/flush", []byte("1\n"), 0)
}

func tell(cache, line string) error {
	return os.WriteFile("/proc/net/rpc/"+cache+"/channel", []byte(line), 0)
}

// introduce has the kernel hear of a client, without which it takes nothing about
// it. Asking for a handle does that (write_filehandle, fs/nfsd/nfsctl.c), whether
// or not there is an export yet.
func introduce(client, path string) error {
	const size = 64 // of a handle, NFS3_FHSIZE of RFC 1813
	line := fmt.Sprintf("%s %s %d\n", quote(client), quote(path), size)
	err := os.WriteFile(filepath.Join(nfsdFS, "filehandle"), []byte(line), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// quote writes a word as the kernel's caches read it: what would end it or be
// taken for an escape as three octal digits (qword_get, net/sunrpc/cache.c).
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
