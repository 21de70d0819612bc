package nfsd

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOwnMonitor: what the monitor has written goes to the user that sm belongs to, and nothing else in its directory,
// which is that of all of NFS on some systems.
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
