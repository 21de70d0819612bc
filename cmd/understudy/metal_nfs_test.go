package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/nfs3"
	"understudy.dev/understudy/internal/lab/tier"
)

// nfsRole has the understudy serve what Debian's own NFS server does.
const nfsRole = `{
	"partition": "understudy",
	"disks": [{"name": "data", "type": "ext4", "mount": "/srv"}],
	"nics": [{"mac": "52:54:00:00:00:02", "address": "10.77.0.2/24"}],
	"services": [],
	"nfs": {"host": "machine", "exports": ["/srv/files *(rw,async,no_root_squash,fsid=1)"], "state": "/srv/.nfs", "lease": 10000000000, "grace": 10000000000, "threads": 8}
}`

// nfsServe has Debian's own server serve, and the machine die when a client makes a file.
const nfsServe = `
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if ! grep -q understudy.metal /proc/cmdline; then
  understudy metal install` + metalLimits + ` --role /role.json || echo FAILED install
  echo INSTALLED
  systemctl reboot
  exit
fi
n=0
until understudy metal status | grep -q '^protected'; do
  sleep 0.5
  n=$((n + 1))
  [ $n -lt 600 ] || { journalctl -u understudy-metal; understudy metal status -v; echo FAILED protected; systemctl poweroff; }
done
for s in vm/dirty_writeback_centisecs=0 vm/dirty_expire_centisecs=360000 vm/dirty_background_bytes=900000000 vm/dirty_bytes=1000000000; do
  echo ${s#*=} > /proc/sys/${s%=*}
done
mount -o remount,commit=86400 /srv || echo FAILED remount
mkdir /srv/files
mv /srv/old* /srv/files
echo '/srv/files *(rw,async,no_root_squash,no_subtree_check,fsid=1)' > /etc/exports
printf '[mountd]\nport=20048\n' > /etc/nfs.conf.d/lab.conf
systemctl start nfs-server || echo FAILED nfs-server
sync
echo SERVING
until [ -e /srv/files/die ]; do sleep 0.1; done
echo DYING
echo c > /proc/sysrq-trigger
`

// TestMetalNFS: a client of a machine's own NFS server goes on with its handles when the
// kernel dies, and reads what it wrote, which no disk had yet.
func TestMetalNFS(t *testing.T) {
	tier.Full(t, "an NFS server of Debian's, and a client outside")
	vm(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m, ns := debianMachine(t, virtio, "default", nfsServe, nfsRole)
	installDebian(t, ctx, m)
	r, end := startMetal(t, ctx, m)
	defer end()
	if err := r.Await(ctx, "SERVING"); err != nil {
		t.Fatal(err)
	}
	dial := func(port uint16) *nfs3.Client {
		c, err := nfs3.New(nfs3.Options{Network: "tcp", Server: netip.AddrPortFrom(netip.MustParseAddr("10.77.0.2"), port), In: ns.Do, DialLimit: time.Second, Retransmit: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	root := do(t, ctx, dial(20048), nfs3.Mount("/srv/files"))
	c := dial(2049)
	made := makeOverNFS(t, ctx, c, root)
	do(t, ctx, c, nfs3.Create(root, "die", nfs3.Set{}))
	// Until then the dying one may answer.
	if err := r.Await(ctx, "end Kernel panic"); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	for i, f := range made {
		f.check(t, ctx, c)
		if i == 0 {
			t.Logf("served again after %v", time.Since(died))
		}
	}
	if _, err := nfs3.Do(ctx, c, nfs3.Lookup(root, "old2")); !errors.Is(err, nfs3.ErrNoEnt) {
		t.Errorf("what was renamed is there again: %v", err)
	}
	if f := do(t, ctx, c, nfs3.Lookup(root, "renamed")); !bytes.Equal(do(t, ctx, c, nfs3.Read(f.Handle, 0, 1<<16)).Data, bytes.Repeat([]byte("old content"), 1000)) {
		t.Error("what was renamed is not what it was")
	}
	after := do(t, ctx, c, nfs3.Write(made[0].handle, 0, nfs3.Unstable, made[0].content[:1000]))
	if after.Verifier == made[0].verifier {
		t.Error("the server has the verifier of the dead one: clients would not send again what it may have lost")
	}
	if v := do(t, ctx, c, nfs3.Commit(made[0].handle, 0, 0)); v != after.Verifier {
		t.Error("the verifier changed without a restart")
	}
}

// TestMetalNFSReady: an understudy that is to serve NFS protects.
func TestMetalNFSReady(t *testing.T) {
	tier.Full(t, "an understudy's NFS server, prepared")
	role := filepath.Join(t.TempDir(), "nfs.json")
	if err := os.WriteFile(role, []byte(nfsRole), 0o644); err != nil {
		t.Fatal(err)
	}
	m := bareMachine{options: []string{"--nfs"}, files: []string{role}, script: strings.ReplaceAll(metalStart, "/role.json", "/nfs.json") + `
understudy metal status
kill $RUN
wait $RUN
poweroff -f
`}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	if console := bootToEnd(t, ctx, m); !strings.Contains(console, "PROTECTED") || strings.Contains(console, "FAILED") {
		t.Errorf("it does not protect:\n%s", console)
	}
}

// nfsFile is a file that was written over NFS and not committed.
type nfsFile struct {
	handle   nfs3.Handle
	content  []byte
	verifier nfs3.Verifier
}

func makeOverNFS(t *testing.T, ctx context.Context, c *nfs3.Client, root nfs3.Handle) (made []nfsFile) {
	t.Helper()
	for i := range 20 {
		f := nfsFile{handle: do(t, ctx, c, nfs3.Create(root, fmt.Sprintf("nfs%d", i), nfs3.Set{})).Handle, content: make([]byte, 7919*(i+1)%65000+1)}
		_, _ = rand.Read(f.content) // it does not fail
		f.verifier = do(t, ctx, c, nfs3.Write(f.handle, 0, nfs3.Unstable, f.content)).Verifier
		made = append(made, f)
	}
	do(t, ctx, c, nfs3.Rename(root, "old2", root, "renamed"))
	return made
}

// check reads the file by the handle that it had before the death.
func (f *nfsFile) check(t *testing.T, ctx context.Context, c *nfs3.Client) {
	t.Helper()
	if got := do(t, ctx, c, nfs3.Read(f.handle, 0, 1<<16)); !bytes.Equal(got.Data, f.content) || !got.EOF {
		t.Errorf("a file of %d bytes has %d others", len(f.content), len(got.Data))
	}
}

func do[T any](t *testing.T, ctx context.Context, c *nfs3.Client, r nfs3.Request[T]) T {
	t.Helper()
	v, err := nfs3.Do(ctx, c, r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
