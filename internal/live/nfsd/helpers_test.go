package nfsd

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOwnMonitor: the files that the monitor has written get the owner of sm. Nothing else in the directory does: on
// some systems it is the state directory of all of NFS.
func TestOwnMonitor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root, who alone gives files away")
	}
	dir := t.TempDir()
	for _, d := range []string{"sm", "sm.bak", "nfsdcld"} {
		try(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	want := map[string]uint32{"sm/client": 7, "sm.bak/other": 7, "state": 7, "etab": 0, "nfsdcld/main.sqlite": 0}
	for name := range want {
		try(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	try(t, os.Chown(filepath.Join(dir, "sm"), 7, 8), ownMonitor(dir))
	for name, uid := range want {
		var s unix.Stat_t
		try(t, unix.Stat(filepath.Join(dir, name), &s))
		if s.Uid != uid {
			t.Errorf("%s belongs to %d", name, s.Uid)
		}
	}
	try(t, os.Remove(filepath.Join(dir, "state")), ownMonitor(dir))
}
