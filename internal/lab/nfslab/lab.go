// Package nfslab is a pair that serves NFS, on its own network, with a guest as its
// client: the real kernel's client, in a kernel that lives on when the server's dies.
package nfslab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/guest"
	"understudy.dev/understudy/internal/live/initramfs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// Addresses of the lab's network, and what is exported in it.
const (
	ServerAddress = "10.77.0.2"
	ClientAddress = "10.77.0.9"
	HostAddress   = "10.77.0.1" // of the namespace Net.Client
	Export        = "/srv/export"

	serverMAC = "52:54:00:75:64:02"
	clientMAC = "52:54:00:75:64:09"
	clientTap = "nfsclient"
)

// Options say what to set up.
type Options struct {
	Kernel      string           // directory of the guests' kernel, as of dirs.Kernel
	Program     string           // answers Verbs as the client's PID 1; empty means the running one
	ClientFiles []initramfs.File // further files of the client's image
	Log         io.Writer

	NFS       string // content of nfs: in pair.yaml; empty means one async export, 10 s of lease and grace
	More      string // more lines of pair.yaml
	Append    string // kernel parameters of the servers
	Reboots   bool   // no pair serves, but one guest that reboots when it panics
	Elsewhere bool   // no guest serves, but a machine that the caller attaches to a Tap
	DiskBytes int64  // 0 means 1 GiB
}

// DefaultNFS is the NFS server of a lab whose Options.NFS is empty.
const DefaultNFS = `{exports: ["/srv/export *(rw,async,no_root_squash,fsid=1)"], state: /srv/.nfs, lease: 10s, grace: 10s, udp: true}`

const describe = `name: %[1]s
partitions:
  left:  {cpus: "%[2]d", memory: 768MiB, kernel: %[4]s, initramfs: %[5]s, append: "%[8]s"}
  right: {cpus: "%[3]d", vcpus: 2, memory: 768MiB, kernel: %[4]s, initramfs: %[5]s, append: "%[8]s"}
disks:
  - {name: data, image: data.img, type: ext4, mount: /srv}
nics:
  - {name: lan, mac: "` + serverMAC + `", address: ` + ServerAddress + `/24, bridge: br0}
nfs: %[6]s
%[7]s
`

// Lab is a pair that serves and a client that has booted. The export's directory exists.
type Lab struct {
	Pair   *pair.Pair
	Super  *supervisor.Supervisor
	Net    *netlab.Lab
	Client *supervisor.Appliance
	Alone  *supervisor.Appliance // instead of Super, if Options.Reboots

	o   Options
	dir string
	// aloneDir is the run directory, which a pair's supervisor would make and remove.
	aloneDir string
	machine  pair.Machine
}

// New sets a lab up. On an error nothing is left behind.
func New(ctx context.Context, o Options) (l *Lab, err error) {
	l = &Lab{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.dir, err = netlab.WorkDir("nfs-"); err != nil {
		return l, err
	}
	if l.Net, err = netlab.NewLab(netip.MustParsePrefix(HostAddress + "/24")); err != nil {
		return l, err
	}
	if err := l.describe(ctx); err != nil {
		return l, err
	}
	switch {
	case o.Elsewhere:
		err = l.makeDir()
	case o.Reboots:
		err = l.bootAlone(ctx)
	default:
		l.Super, err = supervisor.Start(ctx, l.Pair, supervisor.Options{
			Dir: dirs.Run(l.Pair.Name), Network: l.Net.Services, Log: o.Log,
		})
	}
	if err != nil {
		return l, err
	}
	return l, l.bootClient(ctx)
}

// describe makes images, disk and the pair's description.
func (l *Lab) describe(ctx context.Context) (err error) {
	o := l.o
	if l.machine, err = pair.ThisMachine(); err != nil {
		return err
	}
	cpus := l.machine.Two()
	server := filepath.Join(l.dir, "server.cpio")
	kernel, modules, err := dirs.Kernel(o.Kernel)
	if err != nil {
		return err
	}
	image := guest.Image{Program: o.Program, Modules: modules, NFSServer: true}
	if err := image.WriteFile(server); err != nil {
		return err
	}
	image.NFSServer, image.NFSClient, image.Files = false, true, o.ClientFiles
	if err := image.WriteFile(l.clientImage()); err != nil {
		return err
	}
	if err := makeDisk(ctx, filepath.Join(l.dir, "data.img"), o.DiskBytes); err != nil {
		return err
	}
	nfs := o.NFS
	if nfs == "" {
		nfs = DefaultNFS
	}
	text := fmt.Sprintf(describe, strings.ToLower(filepath.Base(l.dir)), cpus[0], cpus[1], kernel, server, nfs, o.More, o.Append)
	file := filepath.Join(l.dir, "pair.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	if l.Pair, err = pair.Load(file); err != nil {
		return err
	}
	return l.Pair.Check(l.machine)
}

func (l *Lab) clientImage() string { return filepath.Join(l.dir, "client.cpio") }

// makeDisk makes a file system with the export's directory in it.
func makeDisk(ctx context.Context, path string, size int64) error {
	if size == 0 {
		size = 1 << 30
	}
	top := path + ".top"
	if err := os.MkdirAll(filepath.Join(top, filepath.Base(Export)), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(top)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-d", top, path).CombinedOutput(); err != nil {
		return fmt.Errorf("make file system: %w: %s (package e2fsprogs has it)", err, out)
	}
	return nil
}

// bootClient boots the client on the pair's bridge. It runs on all of the CPUs that the
// pair has, on whichever is idle.
func (l *Lab) bootClient(ctx context.Context) error {
	kernel := l.Pair.Partitions[0].Kernel
	mac, err := net.ParseMAC(clientMAC)
	if err != nil {
		return err
	}
	tap, err := l.Tap(clientTap)
	if err != nil {
		return err
	}
	defer tap.Close()
	cpus := l.machine.Two()
	spec := partition.Spec{
		Name: "client", Dir: dirs.Run(l.Pair.Name), CPUs: cpus[1:], VCPUs: 1, Memory: 512 << 20,
		Kernel: kernel, Initramfs: l.clientImage(), Append: "hostname=client",
		Devices: []partition.Device{partition.NIC{Name: "lan", MAC: mac, Tap: tap}},
	}
	if spec.Accel, err = partition.FindAccel(ctx, kernel); err != nil {
		return err
	}
	l.Client, err = supervisor.StartGuest(ctx, spec, wire.Config{
		Partition: "client", NICs: []wire.NIC{{MAC: clientMAC, Address: ClientAddress + "/24"}},
	}, nil)
	if err != nil {
		return err
	}
	return l.Client.Spread(cpus[:])
}

// Mount makes the client mount the export at target, with version 3, 4.0, 4.1 or 4.2 over
// TCP. Locks of NFSv3 are local to the client ("3") or the server's ("3,lock"), which
// need a Monitor. All others need no rpcbind.
func (l *Lab) Mount(ctx context.Context, target, version string) error {
	options := "hard,proto=tcp,port=2049,sec=sys,addr=" + ServerAddress + ",vers=" + version
	if strings.HasPrefix(version, "3") {
		options += ",mountaddr=" + ServerAddress + ",mountvers=3,mountproto=tcp,mountport=20048"
		if version == "3" {
			options += ",nolock"
		}
	} else {
		options += ",clientaddr=" + ClientAddress
	}
	return l.Client.Call(ctx, VerbMount, MountRequest{
		Source: ServerAddress + ":" + Export, Target: target, Type: "nfs", Options: options,
	}, nil)
}

// Monitor starts the status monitor of the client: it is notified when the server has
// restarted, and makes the client reclaim its locks of NFSv3.
func (l *Lab) Monitor(ctx context.Context) error {
	for _, command := range [][]string{
		{"/bin/busybox", "mkdir", "-p", "/run/rpcbind", "/run/sendsigs.omit.d", "/var/lib/nfs/sm", "/var/lib/nfs/sm.bak"},
		{"rpcbind"}, {"rpc.statd", "--no-notify"},
	} {
		if _, err := l.RunClient(ctx, command...); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes the run directory.
func (l *Lab) makeDir() error {
	dir := dirs.Run(l.Pair.Name)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		l.aloneDir = dir
	}
	return err
}

// Tap makes a tap in the pair's bridge.
func (l *Lab) Tap(name string) (*os.File, error) {
	tap, err := l.Net.Services.Tap(name, nil)
	if err != nil {
		return nil, err
	}
	if err := l.Net.Services.Enslave(name, netlab.BridgeName); err != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return tap, nil
}

// Run runs a command on the active server.
func (l *Lab) Run(ctx context.Context, command ...string) (string, error) {
	if l.Alone != nil {
		return run(ctx, l.Alone.Call, command)
	}
	return run(ctx, l.Super.Call, command)
}

// RunClient runs a command on the client.
func (l *Lab) RunClient(ctx context.Context, command ...string) (string, error) {
	return run(ctx, l.Client.Call, command)
}

func run(ctx context.Context, call func(context.Context, string, any, any) error, command []string) (string, error) {
	var r wire.ExecResult
	if err := call(ctx, wire.Exec, wire.ExecRequest{Command: command}, &r); err != nil {
		return "", err
	}
	if r.Status != 0 {
		return r.Output, fmt.Errorf("run %s: status %d: %s", strings.Join(command, " "), r.Status, r.Output)
	}
	return r.Output, nil
}

// Close ends all guests and leaves nothing behind.
func (l *Lab) Close() error {
	var errs []error
	if l.Client != nil {
		errs = append(errs, l.Client.Close())
	}
	if l.Super != nil {
		errs = append(errs, l.Super.Discard(), l.Super.Close())
	}
	if l.Alone != nil {
		errs = append(errs, l.Alone.Close())
	}
	if l.aloneDir != "" {
		errs = append(errs, os.RemoveAll(l.aloneDir))
	}
	if l.Net != nil {
		errs = append(errs, l.Net.Close())
	}
	if l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}
