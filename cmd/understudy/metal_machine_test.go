package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/barelab"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/netns"
	"understudy.dev/understudy/internal/takeover/bare"
)

// metalRole is the role of the understudy in the tests.
const metalRole = `{
	"partition": "understudy",
	"disks": [{"name": "data", "type": "ext4", "mount": "/srv"}],
	"nics": [{"mac": "52:54:00:00:00:02", "address": "10.77.0.2/24"}],
	"services": [{"name": "web", "command": ["busybox", "httpd", "-f", "-p", "80", "-h", "/srv"], "ready": 80},
		{"name": "report", "command": ["busybox", "httpd", "-f", "-p", "81", "-h", "/run/understudy"], "ready": 81}
	]
}`

// metalLimit is how long a test may take. It only ends what hangs.
const metalLimit = time.Hour

// metalKernel returns a kernel by its name in scripts/kernels.sh; without a name, the default one.
func metalKernel(t *testing.T, name string) (kernel, modules string) {
	t.Helper()
	cache, err := dirs.Cache()
	if err != nil {
		t.Fatal(err)
	}
	dir := ""
	if name != "" {
		dir = filepath.Join(cache, "kernels", name)
	}
	kernel, modules, err = dirs.Kernel(dir)
	if err != nil {
		tier.Lacks(t, err)
	}
	return kernel, modules
}

// bareMachine describes a machine for a test. Kernels are given by name (metalKernel).
type bareMachine struct {
	active, beside string
	script         string   // of its own Linux
	drivers        []string // further drivers for both kernels
	ownDrivers     []string // further drivers for its own Linux only
	options        []string // of understudy initramfs, for the understudy's image
	files          []string // of this machine, put into / of its own Linux
	programs       []string // likewise, with their libraries, at the same paths
}

// make makes the machine. It also has an understudy's kernel and image.
func (b bareMachine) make(t *testing.T) *barelab.Machine {
	t.Helper()
	vm(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	kernel, modules := metalKernel(t, b.active)
	other, otherModules := metalKernel(t, b.beside)
	options := append([]string{"initramfs", "-o", in("understudy.cpio"), "--modules", otherModules, "--driver", "nvme|"}, b.options...)
	for _, d := range b.drivers {
		options = append(options, "--driver", d)
	}
	if out, err := understudy(t, options...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	image := barelab.Image{
		Program: binary, Modules: modules, Drivers: append(b.ownDrivers, b.drivers...), Script: "echo " + booted + "\n" + b.script, Programs: b.programs,
		Copies: map[string]string{"/vmlinuz": other, "/understudy.cpio": in("understudy.cpio")},
		Texts:  map[string]string{"/role.json": metalRole},
	}
	for _, f := range b.files {
		image.Copies["/"+filepath.Base(f)] = f
	}
	if err := image.WriteFile(in("active.cpio")); err != nil {
		t.Fatal(err)
	}
	return &barelab.Machine{Kernel: kernel, Image: in("active.cpio"), Dir: dir}
}

// parameters boots the machine without a reservation, and returns the kernel parameters for
// an understudy that it prints.
func parameters(t *testing.T, ctx context.Context, m *barelab.Machine) string {
	t.Helper()
	console := firstBoot(t, ctx, m)
	_, rest, ok := strings.Cut(console, "PARAMETERS ")
	line, _, ok2 := strings.Cut(rest, "\n")
	if !ok || !ok2 {
		t.Fatalf("no parameters were printed:\n%s", console)
	}
	return strings.TrimSpace(line)
}

// bootToEnd boots the machine until it turns itself off.
func bootToEnd(t *testing.T, ctx context.Context, m *barelab.Machine) (console string) {
	t.Helper()
	r := startBorn(t, ctx, m)
	if err := r.Wait(); err != nil {
		t.Fatalf("%v\n%s\nsecond:\n%s", err, r.Console(), r.Second())
	}
	return r.Console()
}

// firstBoot is bootToEnd for a machine that does not die.
func firstBoot(t *testing.T, ctx context.Context, m *barelab.Machine) (console string) {
	t.Helper()
	r := startBorn(t, ctx, m)
	if err := r.WaitUnlessPanic(); err != nil {
		t.Fatalf("%v\n%s", err, r.Console())
	}
	return r.Console()
}

// booted is what a machine prints when its own Linux has got to the test's script.
const booted = "BOOTED"

// bootLimit is after how long a boot counts as hung, which happens under QEMU's emulation now and then: 3 to 10 s are usual, and
// Debian with GRUB takes a minute. The next try gets twice as long.
const bootLimit = 5 * time.Minute

// startBorn starts a machine until it prints booted. If it is stillborn, or hangs, it tries again: three times at most.
func startBorn(t *testing.T, ctx context.Context, m *barelab.Machine) *barelab.Running {
	t.Helper()
	for tries := 1; ; tries++ {
		r, err := m.Start(ctx)
		if err != nil {
			t.Fatal(err)
		}
		within, cancel := context.WithTimeout(ctx, bootLimit<<(tries-1))
		err = r.Await(within, booted)
		hung := within.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil {
			return r
		}
		stillborn := r.Stillborn()
		_ = r.Stop() // it may have ended
		if !stillborn && !hung || tries == 3 {
			t.Fatalf("%v\n%s\nsecond:\n%s", err, r.Console(), r.Second())
		}
		tier.Say(t, fmt.Sprintf("its own kernel did not get anywhere (%v); again", err))
	}
}

const metalLimits = " --limit 1m --cpu-limit 2m"

// parametersFirst prints the machine's parameters at its first boot, and ends that boot.
const parametersFirst = `
if ! grep -q understudy.metal /proc/cmdline; then
  echo "PARAMETERS $(understudy metal parameters)"
  drain
  poweroff -f
fi
understudy metal check
`

// metalStart starts an understudy at the machine's second boot.
const metalStart = parametersFirst + metalRun

// metalRun has limits that the emulation on a busy machine does not come near: a test of
// the limits removes metalLimits.
const metalRun = `
understudy metal run` + metalLimits + ` --kernel /vmlinuz --image /understudy.cpio --role /role.json --append "GODEBUG=cpu.avx2=off" > /tmp/run 2>&1 &
RUN=$!
while ! grep -q protected /tmp/run; do
  kill -0 $RUN || { cat /tmp/run; echo "FAILED metal run"; drain; poweroff -f; }
  sleep 0.1
done
echo "PROTECTED"
`

// metalDevices are QEMU's disk on the drive data and its interface on the network lan.
type metalDevices struct {
	ports, disk, nic string
	drivers          []string // drivers that not every kernel of the tests has
	// network returns an existing network: a tap for the machine, and where its clients are. If it is nil, one is made.
	network func(t *testing.T) (tap *os.File, clients *netns.Namespace)
}

var (
	virtio = metalDevices{disk: "virtio-blk-pci", nic: "virtio-net-pci"}
	nvme   = metalDevices{disk: "nvme", nic: "virtio-net-pci"}
	// Devices behind bridges, whose resets reach them.
	ported = metalDevices{
		ports: "-device pcie-root-port,id=port1,chassis=1,slot=1 -device pcie-root-port,id=port2,chassis=2,slot=2",
		disk:  "nvme,bus=port1", nic: "virtio-net-pci,bus=port2",
	}
	// The chipset's own controller, which nothing resets.
	sata = metalDevices{
		ports: "-device pcie-root-port,id=port2,chassis=2,slot=2",
		disk:  "ide-hd,bus=ide.0", nic: "e1000e,bus=port2", drivers: []string{"ahci", "sd_mod", "e1000e"},
	}
)

// attach gives a machine its disk and a network, which it makes for the test if network is nil. It returns
// where the clients are.
func (d metalDevices) attach(t *testing.T, m *barelab.Machine, disk string) *netns.Namespace {
	t.Helper()
	if d.network == nil {
		d.network = ownNetwork
	}
	tap, ns := d.network(t)
	t.Cleanup(func() { tap.Close() })
	m.Files = []*os.File{tap}
	m.Devices = append(strings.Fields(d.ports),
		"-drive", "if=none,id=data,format=raw,file="+disk, "-device", d.disk+",drive=data,serial=data",
		"-netdev", "tap,id=lan,fd=3", "-device", d.nic+",netdev=lan,mac=52:54:00:00:00:02,romfile=",
	)
	return ns
}

func ownNetwork(t *testing.T) (*os.File, *netns.Namespace) {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	tap, err := ns.Tap("tap0", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.AddAddr("tap0", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
	return tap, ns
}

// metalTakeover is what was observed of a takeover: served is how long nobody was served after
// the dead kernel's last word, and tcp and udp are the same for NFS clients, if there were any.
type metalTakeover struct {
	served, tcp, udp time.Duration
	report           bare.Report
}

// startMetal starts a machine. It returns a function that ends the machine, and logs what
// it printed if the test failed.
func startMetal(t *testing.T, ctx context.Context, m *barelab.Machine) (*barelab.Running, func()) {
	t.Helper()
	r := startBorn(t, ctx, m)
	return r, func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() || testing.Verbose() {
			t.Logf("console:\n%s\nsecond:\n%s", r.Console(), r.Second())
		}
	}
}

// metalClient returns a client of the machine's address, and a function that asks there until it is answered.
func metalClient(t *testing.T, ctx context.Context, ns *netns.Namespace) (*http.Client, func(path string) []byte) {
	client := &http.Client{Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	return client, func(path string) []byte {
		for {
			b, err := get(client, "http://10.77.0.2"+path)
			if err == nil {
				return b
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// outlived waits until a machine whose script ends with its death is served by its understudy, and returns a client of that,
// as metalClient does, and how long nobody served. The death is delay after the end of the script.
func outlived(t *testing.T, ctx context.Context, r *barelab.Running, ns *netns.Namespace, delay time.Duration) (*http.Client, func(path string) []byte, time.Duration) {
	t.Helper()
	if err := r.Await(ctx, "DYING"); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	client, fetch := metalClient(t, ctx, ns)
	fetch("/old1")
	served := time.Since(died) - delay
	t.Logf("served again after %v", served)
	return client, fetch, served
}

// metalReport returns the report of a takeover, which is written when everything is durable.
func metalReport(t *testing.T, fetch func(path string) []byte, path string) (report bare.Report) {
	t.Helper()
	for len(report.Verdict) == 0 {
		if b := fetch(path); b != nil {
			if err := json.Unmarshal(b, &report); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range report.Steps {
		t.Logf("%-10s %8.1f ms to %8.1f", s.Name, s.Start, s.End)
	}
	return report
}

// givesBack has the understudy give the machine back, by the program that its web server has at a path: it resets the
// machine, and everything is on the disk.
func givesBack(t *testing.T, client *http.Client, r *barelab.Running, path string) {
	t.Helper()
	if _, err := client.Get("http://10.77.0.2" + path); err == nil {
		t.Error("the understudy did not give the machine back")
	}
	if err := r.Wait(); err != nil {
		t.Fatal(err)
	}
}

func checkMAC(t *testing.T, ns *netns.Namespace) {
	t.Helper()
	if mac, err := ns.Neighbor(netip.MustParseAddr("10.77.0.2")); err != nil || mac.String() != "52:54:00:00:00:02" {
		t.Errorf("the MAC is %v, %v", mac, err)
	}
}

// makeData makes a disk with four files, and a program that gives the machine back if a web
// server runs it.
func makeData(t *testing.T, disk string) {
	t.Helper()
	old := t.TempDir()
	for i := range 4 {
		if err := os.WriteFile(filepath.Join(old, fmt.Sprintf("old%d", i+1)), bytes.Repeat([]byte("old content"), 1000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(old, "cgi-bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "cgi-bin/return"), []byte(returnScript), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 256<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-L", "data", "-d", old, disk).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
}

// returnScript runs this program by whichever of its paths exists.
const returnScript = `#!/bin/sh
[ -x /usr/local/bin/understudy ] && exec /usr/local/bin/understudy metal return
exec /init metal return
`

// get fetches a file. It returns nil for one that does not exist.
func get(c *http.Client, url string) ([]byte, error) {
	r, err := c.Get(url)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	if err == nil && r.StatusCode != http.StatusOK {
		err = errors.New(r.Status)
	}
	return b, err
}
