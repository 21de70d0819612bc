package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// nfsScript makes a machine serve a directory to itself, write to it what no server has seen yet, be cut
// off, and die in the middle of sending. What the server's helpers would say about exports is written by
// hand (net/sunrpc/cache.c; fs/nfsd/export.c, svc_export_parse, expkey_parse). A close of a file makes the
// client send its data, and so does stat(2): each file has one process that writes and then holds it open.
const nfsScript = `
echo 1000000 >/proc/sys/vm/dirty_writeback_centisecs
echo 1000000 >/proc/sys/vm/dirty_expire_centisecs
ip link set lo up
mkdir /client
mount -t ext4 /dev/vda /mnt
mkdir -p /mnt/share/dir
seq 1 3000 >/mnt/share/old
echo begun >/mnt/share/dir/log
sync
mount -t nfsd nfsd /proc/fs/nfsd
echo "-2 -3 +4" >/proc/fs/nfsd/versions
echo "nfsd 127.0.0.1 2147483647 us" >/proc/net/rpc/auth.unix.ip/channel
echo "us /mnt 2147483647 9218 65534 65534 0" >/proc/net/rpc/nfsd.export/channel
echo 'us 1 \x00000000 2147483647 /mnt' >/proc/net/rpc/nfsd.fh/channel
echo "tcp 2049" >/proc/fs/nfsd/portlist
echo 2 >/proc/fs/nfsd/threads
echo Y >/proc/fs/nfsd/v4_end_grace || true
mount -t nfs4 -o vers=%s,proto=tcp,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys 127.0.0.1:/share /client
cat /client/old >/dev/null
sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; done; exec sleep 1000' >/client/dir/new &
new=$!
sh -c 'printf patched; exec sleep 1000' 1<>/client/old &
old=$!
sh -c 'echo appended; exec sleep 1000' >>/client/dir/log &
log=$!
for at in $new:8893 $old:7 $log:15; do
	until grep -q "^pos:.*[^0-9]${at#*:}\$" /proc/${at%%:*}/fdinfo/1; do sleep 1; done
done
take before
ip link set lo down
sync &
sleep 3
crash
`

// TestUnsent checks that what an NFS client had not sent is listed, by the paths on its server, and extracted; of
// a page that was never read, only the bytes that were written.
func TestUnsent(t *testing.T) {
	for _, tt := range []struct{ kernel, version string }{{"", "4.2"}, {"6.12-cloud", "4.1"}, {"newest-cloud", "4.0"}} {
		t.Run(tt.kernel+" "+tt.version, func(t *testing.T) {
			vm(t)
			tier.Full(t, "a client of NFS")
			s := scene.Play(t, scene.Spec{
				Kernel: tt.kernel, Modules: []string{"ext4", "nfsd", "nfsv4"}, Memory: 384 << 20,
				Disks:  []scene.Disk{{Size: 64 << 20, Mkfs: []string{"mkfs.ext4", "-qF", "-b", "4096"}}},
				Script: fmt.Sprintf(nfsScript, tt.version),
			})
			for name, memory := range map[string]string{"not sent": s.Memory("before"), "being sent": s.RAM} {
				t.Run(name, func(t *testing.T) { unsentIn(t, memory) })
			}
		})
	}
}

// unsentIn checks that a memory has what nfsScript left in it.
func unsentIn(t *testing.T, memory string) {
	long, old := seq(2000), seq(3000)
	copy(old, "patched")
	dir, fs := extractRemote(t, memory, "nfs4")
	found := make(map[string][]inventory.Range)
	for _, f := range fs.Files {
		found[f.Path] = f.Ranges
		want := map[string][]byte{"share/dir/new": long, "share/old": old, "share/dir/log": []byte("begun\nappended\n")}[f.Path]
		if int(f.Size) != len(want) {
			t.Errorf("%s has %d bytes, want %d", f.Path, f.Size, len(want))
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, f.Written.Name))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range f.Ranges {
			if !bytes.Equal(got[r[0]:r[0]+r[1]], want[r[0]:r[0]+r[1]]) {
				t.Errorf("%s: bytes %v are not what was written", f.Path, r)
			}
		}
	}
	all := []inventory.Range{{0, int64(len(long))}}
	if got := found["share/dir/new"]; len(got) != 1 || got[0] != all[0] {
		t.Errorf("of the new file: %v, want %v", got, all)
	}
	if got := found["share/dir/log"]; len(got) != 1 || got[0] != (inventory.Range{6, 9}) {
		t.Errorf("of what was appended: %v", got)
	}
	if got := found["share/old"]; len(got) != 1 || got[0][0] != 0 || got[0][1] < 7 || got[0][1] > 4096 {
		t.Errorf("of what was patched: %v", got)
	}
	if len(found) != 3 {
		t.Errorf("%v", found)
	}
}

// seq returns what seq(1) prints up to a number.
func seq(last int) []byte {
	var b bytes.Buffer
	for i := 1; i <= last; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.Bytes()
}

// extractRemote extracts what the client of a server on 127.0.0.1 had not sent, from the only file system of its
// type, and returns where the files are.
func extractRemote(t *testing.T, memory, kind string) (dir string, fs inventory.FileSystemReport) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "out")
	if got := command(t, "salvage", "extract", memory, "-o", dir, "--fs", kind); got.err != nil {
		t.Fatal(got.err, got.errs)
	}
	raw, err := os.ReadFile(filepath.Join(dir, inventory.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	r := report(t, string(raw))
	if len(r.FileSystems) != 1 || r.FileSystems[0].Server != "127.0.0.1" || !r.Complete {
		t.Fatalf("%s", raw)
	}
	return dir, r.FileSystems[0]
}
