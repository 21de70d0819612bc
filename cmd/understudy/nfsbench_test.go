package main

import (
	"go/build"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/nfsbench"
	"understudy.dev/understudy/internal/lab/nfslab"
	"understudy.dev/understudy/internal/lab/tier"
)

// nfsPlaceForTest returns what an NFS lab needs in a test.
func nfsPlaceForTest(t *testing.T) (o nfslab.Options) {
	t.Helper()
	vm(t)
	o.Program, o.Log = labBinary, t.Output()
	t.Cleanup(func() {
		if t.Failed() {
			keepConsoles(t)
		}
	})
	return o
}

// TestNFSBench checks that through a takeover no client loses a byte, or gets an error other than that of a
// lost reply, and that the same work loses what was not saved in a reboot. make nfs does this at length.
func TestNFSBench(t *testing.T) {
	tier.Full(t, "some minutes of NFS")
	for _, row := range []nfsbench.Row{nfsbench.Takeover, nfsbench.Reboot} {
		t.Run(strings.Fields(row.Name)[0], func(t *testing.T) {
			o := nfsbench.Options{Lab: nfsPlaceForTest(t), Say: t.Output()}
			r, err := nfsbench.Run(t.Context(), o, row, 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range append(r.Checks, r.LostReplies...) {
				t.Log(c)
			}
			for _, f := range r.Failures {
				t.Error(f)
			}
			if u := r.Unstable; u.Before == u.After {
				t.Errorf("the write verifier is %s before and after", u.Before)
			}
			if !row.Reboots {
				checkRetried(t, r)
			}
		})
	}
}

// checkRetried checks that repeated calls are answered as docs/NFS.md says.
func checkRetried(t *testing.T, r *nfsbench.Report) {
	t.Helper()
	want := map[string]string{
		"CREATE exclusive": "OK", "CREATE guarded": "NFS3ERR_EXIST", "REMOVE": "NFS3ERR_NOENT", "RENAME": "NFS3ERR_NOENT",
		"MKDIR": "NFS3ERR_EXIST", "WRITE": "OK", "SETATTR": "OK",
	}
	for _, c := range r.Retried {
		if c.First != "OK" || c.Again != "OK" || c.After != want[c.Call] || !c.Holds {
			t.Errorf("%s: %s, again %s, after the crash %s (want %s), holds: %v", c.Call, c.First, c.Again, c.After, want[c.Call], c.Holds)
		}
		delete(want, c.Call)
	}
	if len(want) > 0 {
		t.Errorf("not tried: %v", want)
	}
}

// TestNFSCrashes crashes a server while its client runs real programs, as make
// nfs-crashes does at length.
func TestNFSCrashes(t *testing.T) {
	tier.Full(t, "some minutes of NFS")
	o := nfsPlaceForTest(t)
	if _, err := os.Stat("/usr/bin/fio"); err != nil {
		t.Skipf("%v: scripts/setup.sh installs it", err)
	}
	tree, err := nfsbench.PackTree(filepath.Join(build.Default.GOROOT, "src", "net"))
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if o.ClientFiles, err = tree.Content(); err != nil {
		t.Fatal(err)
	}
	reports, err := nfsbench.Crashes(t.Context(), nfsbench.Options{Lab: o, Say: t.Output()}, tree, 1, 1, t.Output())
	if err != nil {
		t.Error(err)
	}
	for _, r := range reports {
		for _, f := range r.Failures {
			t.Error(f)
		}
	}
}
