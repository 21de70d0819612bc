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
	"sync"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/nfs3"
	"understudy.dev/understudy/internal/lab/nfslab"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/netns"
)

// nfsRole makes the understudy serve what Debian's own NFS server serves.
const nfsRole = `{
	"partition": "understudy",
	"disks": [{"name": "data", "type": "ext4", "mount": "/srv"}],
	"nics": [{"mac": "52:54:00:00:00:02", "address": "10.77.0.2/24"}],
	"services": [],
	"nfs": {"host": "machine", "exports": ["/srv/files *(rw,async,no_root_squash,fsid=1)"], "state": "/srv/.nfs", "lease": 10000000000, "grace": 10000000000, "threads": 8, "udp": true}
}`

// nfsStart makes Debian's own server serve.
const nfsStart = `
mkdir -p /srv/files /home/files /srv/export
for f in /srv/files/tcp /srv/files/udp /home/files/udp; do [ -e $f-renamed ] || echo old > $f-old; done
printf '%s *(rw,async,no_root_squash,no_subtree_check,fsid=%d)\n' /srv/files 1 /home/files 2 /srv/export 3 > /etc/exports
printf '[nfsd]\nudp=y\nlease-time=30\ngrace-time=30\n[mountd]\nport=20048\n' > /etc/nfs.conf.d/lab.conf
systemctl start nfs-server || echo FAILED nfs-server
`

// nfsServe makes Debian's own server serve, and the machine die when a client creates a file.
const nfsServe = debianStart + nfsStart + debianFirst + debianProtected + debianHold + `
echo SERVING
until [ -e /srv/files/die ] || [ -e /home/files/die ] || [ -e /srv/export/die ]; do sleep 0.1; done
echo DYING
drain
echo c > /proc/sysrq-trigger
`

// TestMetalNFS checks that clients of a machine's own NFS server go on with their handles
// when the kernel dies, and read what they wrote, which was on no disk yet.
func TestMetalNFS(t *testing.T) {
	tier.Full(t, "an NFS server of Debian's, and clients outside")
	vm(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m, ns := debianMachine(t, debianCase{bookworm, "default", "", virtio, false}, strings.Replace(nfsServe, "OPTIONS", "--role /role.json"+metalLimits, 1), nfsRole)
	installDebian(t, ctx, m)
	r, end := startMetal(t, ctx, m)
	defer end()
	if err := r.Await(ctx, "SERVING"); err != nil {
		t.Fatal(err)
	}
	clients := metalNFSClients(t, ctx, ns, "/srv/files", "/srv/files")
	clients[0].die(t, ctx)
	if err := r.Await(ctx, "DYING"); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	for network, at := range awaitNFS(ctx, clients) {
		t.Logf("served again over %s after %v", network, at.Sub(died))
	}
	for _, c := range clients {
		c.check(t, ctx)
	}
}

// nfsClient is a client of a machine's NFS server, over TCP or UDP, and what it created there.
type nfsClient struct {
	*nfs3.Client
	network, dir string
	root         nfs3.Handle
	probe        nfsFile // written to until another kernel answers
	made         []nfsFile
}

// dialNFS returns a client of a port of a machine.
func dialNFS(t *testing.T, ns *netns.Namespace, network string, port uint16) *nfs3.Client {
	t.Helper()
	o := nfs3.Options{Network: network, Server: netip.AddrPortFrom(netip.MustParseAddr("10.77.0.2"), port), In: ns.Do, DialLimit: time.Second}
	if network == "tcp" {
		o.Retransmit = 5 * time.Second
	}
	c, err := nfs3.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// probeNFS returns a client of a directory, with a single file for finding out whether the server has changed.
func probeNFS(t *testing.T, ctx context.Context, ns *netns.Namespace, network, dir string) *nfsClient {
	t.Helper()
	mount := dialNFS(t, ns, "tcp", 20048)
	root := do(t, ctx, mount, nfs3.Mount(dir))
	if err := mount.Close(); err != nil { // the next client may get its port
		t.Fatal(err)
	}
	c := &nfsClient{Client: dialNFS(t, ns, network, 2049), network: network, dir: dir, root: root}
	c.probe = c.make(t, ctx, network+"-probe", []byte("probe"))
	return c
}

// metalNFSClients returns a client over TCP and one over UDP, of a directory each, where it has written files that
// it did not commit, and renamed one that was on the disk.
func metalNFSClients(t *testing.T, ctx context.Context, ns *netns.Namespace, tcp, udp string) (clients []*nfsClient) {
	t.Helper()
	for network, dir := range map[string]string{"tcp": tcp, "udp": udp} {
		c := probeNFS(t, ctx, ns, network, dir)
		for i := range 10 {
			content := make([]byte, 3919*(i+1)%30000+1)
			_, _ = rand.Read(content) // it does not fail
			c.made = append(c.made, c.make(t, ctx, fmt.Sprintf("%s%d", network, i), content))
		}
		do(t, ctx, c.Client, nfs3.Rename(c.root, network+"-old", c.root, network+"-renamed"))
		clients = append(clients, c)
	}
	return clients
}

// die tells the machine to die, by a file in the client's directory.
func (c *nfsClient) die(t *testing.T, ctx context.Context) {
	t.Helper()
	do(t, ctx, c.Client, nfs3.Create(c.root, "die", nfs3.Set{}))
}

// awaitNFS lets the clients write until a server with another verifier answers each. It returns when that was, by
// network.
func awaitNFS(ctx context.Context, clients []*nfsClient) map[string]time.Time {
	at := make([]time.Time, len(clients))
	var wait sync.WaitGroup
	for i, c := range clients {
		wait.Go(func() {
			for ctx.Err() == nil {
				if r, err := nfs3.Do(ctx, c.Client, nfs3.Write(c.probe.handle, 0, nfs3.Unstable, c.probe.content)); err == nil && r.Verifier != c.probe.verifier {
					at[i] = time.Now()
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	wait.Wait()
	by := make(map[string]time.Time)
	for i, c := range clients {
		by[c.network] = at[i]
	}
	return by
}

// check checks that the server has what the client created, by the handles from before the death, and that the
// client would write again what the dead kernel did not commit.
func (c *nfsClient) check(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, f := range c.made {
		if got := do(t, ctx, c.Client, nfs3.Read(f.handle, 0, 1<<16)); !bytes.Equal(got.Data, f.content) || !got.EOF {
			t.Errorf("over %s: %s, of %d bytes, has %d others", c.network, f.name, len(f.content), len(got.Data))
		}
	}
	if _, err := nfs3.Do(ctx, c.Client, nfs3.Lookup(c.root, c.network+"-old")); !errors.Is(err, nfs3.ErrNoEnt) {
		t.Errorf("what was renamed is there again: %v", err)
	}
	if f := do(t, ctx, c.Client, nfs3.Lookup(c.root, c.network+"-renamed")); !bytes.Equal(do(t, ctx, c.Client, nfs3.Read(f.Handle, 0, 1<<16)).Data, []byte("old\n")) {
		t.Error("what was renamed is not what it was")
	}
	f := c.made[0]
	after := do(t, ctx, c.Client, nfs3.Write(f.handle, 0, nfs3.Unstable, f.content[:1000]))
	if after.Verifier == f.verifier {
		t.Error("the server has the verifier of the dead one: clients would not send again what it may have lost")
	}
	if v := do(t, ctx, c.Client, nfs3.Commit(f.handle, 0, 0)); v != after.Verifier {
		t.Error("the verifier changed without a restart")
	}
}

// left compares what the client created with what is on the disks. at finds a path there.
func (c *nfsClient) left(t *testing.T, at func(path string) string) {
	t.Helper()
	dir := at(c.dir)
	for _, f := range c.made {
		if b, err := os.ReadFile(filepath.Join(dir, f.name)); err != nil || !bytes.Equal(b, f.content) {
			t.Errorf("on the disk %s has %d bytes of %d, or others (%v)", f.name, len(b), len(f.content), err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, c.network+"-renamed")); err != nil || string(b) != "old\n" {
		t.Errorf("on the disk what was renamed is %q, %v", b, err)
	}
}

// TestMetalNFSClient checks that a stock kernel's client can go on with what it has mounted from a machine's own NFS
// server when the server's kernel dies: with files that are being written, and with locks, those of NFSv3 included.
func TestMetalNFSClient(t *testing.T) {
	tier.Full(t, "an NFS server of Debian's, and a kernel's client")
	for _, kernel := range []string{"default", "6.12-cloud", "newest-cloud"} {
		t.Run(kernel, func(t *testing.T) { testMetalNFSClient(t, kernel) })
	}
}

func testMetalNFSClient(t *testing.T, kernel string) {
	vm(t)
	ctx, cancel := context.WithTimeout(t.Context(), metalLimit)
	defer cancel()
	l := bootNFSLab(t, nfslab.Options{Elsewhere: true})
	devices := virtio
	devices.network = func(t *testing.T) (*os.File, *netns.Namespace) {
		tap, err := l.Tap("metal")
		if err != nil {
			t.Fatal(err)
		}
		return tap, l.Net.Client
	}
	d := debianCase{bookworm, kernel, "default", devices, false}.install(t, nfsServe, "--mount / --mount /srv --interface eth0 --nfs"+metalLimits)
	r, end := startMetal(t, ctx, d.Machine)
	defer end()
	if err := r.Await(ctx, "SERVING"); err != nil {
		t.Fatal(err)
	}
	if err := l.Monitor(ctx); err != nil {
		t.Fatal(err)
	}
	probe := probeNFS(t, ctx, l.Net.Client, "tcp", nfslab.Export)
	// A client of 4.0 cannot say that it has reclaimed everything: the others would wait for the end of the grace
	// period. The disk is small.
	locks, streams := workOn(ctx, t, l, 5_000, "3,lock", "4.1", "4.2")
	writeThrough(ctx, t, l, streams, func(t *testing.T, l *nfslab.Lab) {
		if _, err := l.RunClient(ctx, "/bin/busybox", "touch", "/mnt/v4.2/die"); err != nil {
			t.Fatal(err)
		}
		awaitNFS(ctx, []*nfsClient{probe})
	})
	for _, lock := range locks {
		giveUp(ctx, t, l, lock)
	}
}

// TestMetalNFSReady checks that an understudy that is to serve NFS protects the kernel.
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
drain
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
	name     string
	handle   nfs3.Handle
	content  []byte
	verifier nfs3.Verifier
}

func (c *nfsClient) make(t *testing.T, ctx context.Context, name string, content []byte) nfsFile {
	t.Helper()
	handle := do(t, ctx, c.Client, nfs3.Create(c.root, name, nfs3.Set{})).Handle
	return nfsFile{name, handle, content, do(t, ctx, c.Client, nfs3.Write(handle, 0, nfs3.Unstable, content)).Verifier}
}

func do[T any](t *testing.T, ctx context.Context, c *nfs3.Client, r nfs3.Request[T]) T {
	t.Helper()
	v, err := nfs3.Do(ctx, c, r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
