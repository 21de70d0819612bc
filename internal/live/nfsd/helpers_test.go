package nfsd

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// TestKeep: a daemon that ends is started again, and what had registered with it too. If it ends again soon, that is a
// trouble until it answers.
func TestKeep(t *testing.T) {
	answers, err := net.Listen("tcp", "127.0.0.1:0")
	try(t, err)
	defer answers.Close()
	notes := make(chan string, 100)
	s := &Server{
		log: func(string) {},
		run: func(cmd *exec.Cmd) (func() error, error) { return cmd.Wait, cmd.Start() },
		trouble: func(what, ends string) {
			if ends != "" {
				what = "ends: " + ends
			}
			notes <- what
		},
	}
	port := answers.Addr().(*net.TCPAddr).Port
	user := &daemon{port: port, command: []string{"sleep", "1000"}}
	d := &daemon{port: port, command: []string{"sleep", "1001"}, registered: []*daemon{user}}
	for _, d := range []*daemon{user, d} {
		try(t, s.startDaemon(t.Context(), d))
		go s.keep(d)
	}
	defer func() {
		s.mu.Lock() // nothing starts any more
		for _, d := range []*daemon{user, d} {
			d.running.Load().end()
		}
	}()
	note := func(want string) string {
		t.Helper()
		got := <-notes
		if !strings.Contains(got, want) {
			t.Errorf("told %q, not %q", got, want)
		}
		return got
	}
	before := user.running.Load()
	d.running.Load().end()
	note("was started again")
	<-before.done
	d.running.Load().end()
	told := note("does not keep running")
	for got := ""; got != "ends: "+told; {
		got = <-notes // of the user, too, which ended again
	}
}
