package main

import (
	"bytes"
	"context"
	"crypto/sha256"
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
	labfault "understudy.dev/understudy/internal/lab/fault"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/netns"
	"understudy.dev/understudy/internal/takeover/bare"
)

// metalRole is what the understudy of the tests takes over.
const metalRole = `{
	"partition": "understudy",
	"disks": [{"name": "data", "type": "ext4", "mount": "/srv"}],
	"nics": [{"mac": "52:54:00:00:00:02", "address": "10.77.0.2/24"}],
	"services": [{"name": "web", "command": ["busybox", "httpd", "-f", "-p", "80", "-h", "/srv"], "ready": 80},
		{"name": "report", "command": ["busybox", "httpd", "-f", "-p", "81", "-h", "/run/understudy"], "ready": 81}
	]
}`

// metalLimit is how long a test may take. It only ends what hangs.
const metalLimit = 10 * time.Minute

// metalKernel is a kernel by its name in scripts/kernels.sh; by none, the default one.
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

// bareMachine makes a machine whose Linux, a kernel by its name (metalKernel), runs a
// script. On it are an understudy's kernel and image, and further files.
func bareMachine(t *testing.T, active, beside, script string, copies ...string) *barelab.Machine {
	t.Helper()
	return bareMachineWith(t, nil, nil, active, beside, script, copies...)
}

// bareMachineWith is bareMachine, both of whose kernels have further drivers, and whose
// understudy's image is made with more options.
func bareMachineWith(t *testing.T, drivers, more []string, active, beside, script string, copies ...string) *barelab.Machine {
	t.Helper()
	for _, d := range drivers {
		more = append(more, "--driver", d)
	}
	vm(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	kernel, modules := metalKernel(t, active)
	other, otherModules := metalKernel(t, beside)
	if out, err := understudy(t, append([]string{"initramfs", "-o", in("understudy.cpio"), "--modules", otherModules, "--driver", "nvme|"}, more...)...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	image := barelab.Image{
		Program: binary, Modules: modules, Drivers: drivers, Script: script,
		Copies: map[string]string{"/vmlinuz": other, "/understudy.cpio": in("understudy.cpio")},
		Texts:  map[string]string{"/role.json": metalRole},
	}
	for _, c := range copies {
		image.Copies["/"+filepath.Base(c)] = c
	}
	if err := image.WriteFile(in("active.cpio")); err != nil {
		t.Fatal(err)
	}
	return &barelab.Machine{Kernel: kernel, Image: in("active.cpio"), Dir: dir}
}

// parameters boots the machine without a reservation, and has it say what its parameters
// for an understudy are.
func parameters(t *testing.T, ctx context.Context, m *barelab.Machine) string {
	t.Helper()
	console := bootToEnd(t, ctx, m)
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
	r, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(); err != nil {
		t.Fatalf("%v\n%s\nsecond:\n%s", err, r.Console(), r.Second())
	}
	return r.Console()
}

const metalLimits = " --limit 1m --cpu-limit 2m"

// metalStart prints the machine's parameters at its first boot, and starts an understudy at
// its second.
const metalStart = `
if ! grep -q understudy.metal /proc/cmdline; then
  echo "PARAMETERS $(understudy metal parameters)"
  poweroff -f
fi
understudy metal check
` + metalRun

// metalRun has limits that a busy machine's emulation does not come near: who tests them
// takes metalLimits away.
const metalRun = `
understudy metal run` + metalLimits + ` --kernel /vmlinuz --image /understudy.cpio --role /role.json --append "GODEBUG=cpu.avx2=off" > /tmp/run 2>&1 &
RUN=$!
while ! grep -q protected /tmp/run; do
  kill -0 $RUN || { cat /tmp/run; echo "FAILED metal run"; poweroff -f; }
  sleep 0.1
done
echo "PROTECTED"
`

// TestMetalStart: a second stock kernel boots beside the first, which runs on, also when one
// of its own CPUs is taken out for longer than the limit of its beat; nobody can take the
// understudy's CPU or suspend the machine. It stops when it is told to, and another one
// starts in its place.
func TestMetalStart(t *testing.T) {
	tier.Full(t, "an understudy that stops, and another in its place")
	m := bareMachine(t, "", "", strings.ReplaceAll(metalStart, metalLimits, " --limit 1m")+`
for n in 1 2 3 4; do
  understudy metal status
  sleep 0.2
done
echo 1 > /sys/devices/system/cpu/cpu3/online && echo "FAILED to keep the CPU of the understudy"
if [ -e /sys/power/state ] && echo freeze > /sys/power/state; then echo "FAILED to keep it from suspending"; fi
echo 0 > /sys/devices/system/cpu/cpu1/online || echo "FAILED to take CPU 1 out"
sleep 15
echo 1 > /sys/devices/system/cpu/cpu1/online || echo "FAILED to bring CPU 1 back"
sleep 1
understudy metal status
kill $RUN
wait $RUN
echo "STOPPED $?"
understudy metal status
`+strings.ReplaceAll(metalRun, "PROTECTED", "AGAIN")+`
understudy metal status
cat /proc/uptime
kill $RUN
wait $RUN
poweroff -f
`)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m) + os.Getenv("METAL_DEBUG")
	console := bootToEnd(t, ctx, m)
	for text, times := range map[string]int{"UNFIT": 0, "FAILED": 0, "PROTECTED": 1, "AGAIN": 1, "STOPPED 0": 1, "\nprotected": 6, "\nstopped": 1} {
		if got := strings.Count(strings.ReplaceAll(console, "\r", ""), text); got != times {
			t.Errorf("%q was said %d times, not %d", text, got, times)
		}
	}
	if t.Failed() {
		t.Logf("it said:\n%s", console)
	}
}

// metalWork leaves files in memory only, and says what each must be. That the disk was not
// written meanwhile is said too: the sectors written before and after.
const metalWorkOf = `
for s in vm/dirty_writeback_centisecs=0 vm/dirty_expire_centisecs=360000 vm/dirty_background_ratio=89 vm/dirty_ratio=90; do
  echo ${s#*=} > /proc/sys/${s%=*}
done
DISK=vda
while [ ! -e /dev/$DISK ]; do
  sleep 0.1
  for d in nvme0n1 sda; do [ -e /dev/$d ] && DISK=$d; done
done
mount -t ext4 -o commit=86400,noinit_itable /dev/$DISK /srv || echo "FAILED mount"
ip addr add 10.77.0.2/24 dev eth0 || echo "FAILED eth0"
ip link set eth0 up
sync
cat /sys/block/$DISK/stat | { read a b c d e f g rest; echo "WRITTEN $g"; }
cd /srv
mkdir new
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  dd if=/dev/urandom of=new/file$n bs=$((n * 7919)) count=1 2>/dev/null
done
dd if=/dev/urandom of=new/large bs=1M count=LARGE 2>/dev/null
dd if=/dev/urandom of=old1 bs=1000 seek=3 count=1 conv=notrunc 2>/dev/null
mv old2 new/renamed
mv new/file3 old3
rm old4
find new old* -type f | sort > /tmp/names
while read name; do echo "SUM $(sha256sum $name)"; done < /tmp/names
cat /sys/block/$DISK/stat | { read a b c d e f g rest; echo "WRITTEN $g"; }
echo DYING
`

// metalWork is metalWorkOf with a large file of 20 MiB.
var metalWork = strings.Replace(metalWorkOf, "LARGE", "20", 1)

// TestMetalTakeover: the machine's own kernel dies, and the understudy beside it has every
// file exactly as it was, at the same address and MAC.
func TestMetalTakeover(t *testing.T) {
	for _, c := range []struct {
		name, way, active, beside string
		devices                   metalDevices
	}{
		{"panic", "panic", "", "", virtio},
		{"hang-all", "hang-all", "6.1-generic", "6.12-cloud", virtio},
		{"masked", "masked", "newest-cloud", "6.1-generic", ported},
		{"oops-irq", "oops-irq", "6.1-generic", "6.1-generic", ported},
		{"sata", "panic", "6.1-generic", "6.12-generic", sata},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.active != "" {
				tier.Full(t, c.way+" of kernel "+c.active+" beside "+c.beside)
			}
			death, copies := metalDeath(t, c.way, c.active)
			script := strings.ReplaceAll(metalStart, metalLimits, death.limits) + metalWork + death.script
			m := bareMachineWith(t, c.devices.drivers, nil, c.active, c.beside, script, copies...)
			takeOverMetal(t, m, c.devices, death)
		})
	}
}

// death is a way for the machine's own kernel to die.
type death struct {
	script string        // of sh, in the dying kernel
	cause  string        // that the verdict begins with
	limits string        // of metal run
	delay  time.Duration // of it, from the end of the script
}

// metalDeath is a death of a kernel, with the files that its script has in /. An oops happens in
// an interrupt. In a hang no CPU takes an interrupt any more: by our module, or masked by its
// local APIC (Intel SDM volume 3, 11.8.3.1), which any kernel can be done to.
func metalDeath(t *testing.T, way, kernel string) (d death, files []string) {
	t.Helper()
	d = death{cause: "panic state: ", limits: metalLimits}
	switch way {
	case "panic":
		d.script = "echo c > /proc/sysrq-trigger\n"
		return d, nil
	case "masked":
		d.cause, d.limits = "heartbeat: ", " --limit 3s"
		d.script = `
for cpu in $(seq 0 $(($(nproc) - 1))); do
  taskset -c $cpu sh -c 'until [ -e /tmp/now ]; do :; done; exec busybox devmem 0xfee00080 32 0xff' &
done
sleep 1
touch /tmp/now
sleep 1000
`
		return d, nil
	case "hang-all":
		d.cause, d.limits = "heartbeat: ", " --limit 3s"
	}
	module, _, err := labfault.Module(kernel)
	if errors.As(err, new(labfault.Unmet)) {
		tier.Lacks(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.delay = time.Second
	d.script = "insmod /fault.ko way=" + way + "\n"
	return d, []string{module}
}

// metalDevices are QEMU's disk on the drive data and its interface on the network lan.
type metalDevices struct {
	ports, disk, nic string
	drivers          []string // that not every kernel of the tests has
}

var (
	virtio = metalDevices{disk: "virtio-blk-pci", nic: "virtio-net-pci"}
	nvme   = metalDevices{disk: "nvme", nic: "virtio-net-pci"}
	// Behind bridges, whose reset reaches them.
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

// attach gives a machine its disk, and a network of its own with the test: what it returns.
func (d metalDevices) attach(t *testing.T, m *barelab.Machine, disk string) *netns.Namespace {
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
	t.Cleanup(func() { tap.Close() })
	if err := ns.AddAddr("tap0", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
	m.Files = []*os.File{tap}
	m.Devices = append(strings.Fields(d.ports),
		"-drive", "if=none,id=data,format=raw,file="+disk, "-device", d.disk+",drive=data,serial=data",
		"-netdev", "tap,id=lan,fd=3", "-device", d.nic+",netdev=lan,mac=52:54:00:00:00:02,romfile=",
	)
	return ns
}

// metalTakeover is what a takeover was seen to be: served is how long nobody was from the
// dead kernel's last word on.
type metalTakeover struct {
	served time.Duration
	report bare.Report
}

// startMetal starts a machine. What it returns ends it, and tells what it said if the test
// failed.
func startMetal(t *testing.T, ctx context.Context, m *barelab.Machine) (*barelab.Running, func()) {
	t.Helper()
	r, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return r, func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() || testing.Verbose() {
			t.Logf("console:\n%s\nsecond:\n%s", r.Console(), r.Second())
		}
	}
}

// metalClient is a client of the machine's address, and what asks there until it is answered.
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

// metalReport is the report of a takeover, which is written when all is durable.
func metalReport(t *testing.T, fetch func(path string) []byte, path string) (report bare.Report) {
	t.Helper()
	for len(report.Verdict) == 0 {
		if b := fetch(path); b != nil {
			if err := json.Unmarshal(b, &report); err != nil {
				t.Fatal(err)
			}
		}
	}
	return report
}

func checkMAC(t *testing.T, ns *netns.Namespace) {
	t.Helper()
	if mac, err := ns.Neighbor(netip.MustParseAddr("10.77.0.2")); err != nil || mac.String() != "52:54:00:00:00:02" {
		t.Errorf("the MAC is %v, %v", mac, err)
	}
}

// takeOverMetal runs a machine that dies, and has the test fail unless all is as it was.
func takeOverMetal(t *testing.T, m *barelab.Machine, d metalDevices, death death) (seen metalTakeover) {
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m) + os.Getenv("METAL_DEBUG")
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	ns := d.attach(t, m, disk)
	r, end := startMetal(t, ctx, m)
	defer end()
	if err := r.Await(ctx, "DYING"); err != nil {
		t.Fatal(err)
	}
	died := time.Now()
	client, fetch := metalClient(t, ctx, ns)
	fetch("/old1")
	seen.served = time.Since(died) - death.delay
	t.Logf("served again after %v", seen.served)
	checkFiles(t, r.Console(), fetch)
	checkMAC(t, ns)
	seen.report = metalReport(t, fetch, ":81/takeover.json")
	report := &seen.report
	files := report.Files // those that the last commit did not bring
	for _, c := range report.Commits {
		files += c.Files
	}
	if !strings.HasPrefix(report.Verdict, death.cause) || len(report.Refused) > 0 || len(report.Commits) != 1 || files < 20 || !report.Durable {
		t.Errorf("the report is %s: %+v", report.Verdict, report.Report)
	}
	if report.CPUs != 3 { // of four; the boot CPU stays parked
		t.Errorf("the understudy has %d CPUs", report.CPUs)
	}
	for _, s := range report.Steps {
		t.Logf("%-10s %8.1f ms to %8.1f", s.Name, s.Start, s.End)
	}
	// It gives the machine back, which resets it, and all is on the disk.
	if _, err := client.Get("http://10.77.0.2/cgi-bin/return"); err == nil {
		t.Error("the understudy did not give the machine back")
	}
	if err := r.Wait(); err != nil {
		t.Fatal(err)
	}
	left := lookInto(t, disk)
	checkFiles(t, r.Console(), func(path string) []byte {
		b, err := os.ReadFile(left + path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		return b
	})
	return seen
}

// makeData makes a disk with four files, and what gives the machine back if a web server runs
// it.
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

// returnScript runs this program by one of the paths that it has.
const returnScript = `#!/bin/sh
[ -x /usr/local/bin/understudy ] && exec /usr/local/bin/understudy metal return
exec /init metal return
`

// get fetches a file; one that is not there is nil.
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

// checkFiles compares what is served with what the dead kernel said, which it had in memory
// only.
func checkFiles(t *testing.T, console string, fetch func(path string) []byte) {
	t.Helper()
	var sums, sectors int
	var written []int
	for line := range strings.Lines(console) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 3 && fields[0] == "SUM":
			sums++
			if got := fmt.Sprintf("%x", sha256.Sum256(fetch("/"+fields[2]))); got != fields[1] {
				t.Errorf("%s is %s, and was %s", fields[2], got, fields[1])
			}
		case len(fields) == 2 && fields[0] == "WRITTEN":
			if _, err := fmt.Sscan(fields[1], &sectors); err != nil {
				t.Fatal(err)
			}
			written = append(written, sectors)
		}
	}
	if sums != 23 || len(written) != 2 {
		t.Fatalf("%d files were told of, and %d times what was written", sums, len(written))
	}
	if kib := (written[1] - written[0]) / 2; kib > 1024 {
		t.Errorf("%d KiB reached the disk before the crash", kib)
	}
	for _, gone := range []string{"/old2", "/old4", "/new/file3"} {
		if fetch(gone) != nil {
			t.Errorf("%s is there again", gone)
		}
	}
}

// TestMetalRefused: a machine that is not fit is told so by what is wrong with it, and
// nothing is started.
func TestMetalRefused(t *testing.T) {
	tier.Full(t, "machines that are not fit")
	m := bareMachine(t, "", "", metalStart)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	good := parameters(t, ctx, m)
	for _, c := range []struct {
		name, from, to string
		devices        []string
		unfit          []string
	}{
		// Fewer possible CPUs: this kernel uses logical destinations. All of the CPUs.
		{"logical", "possible_cpus=9 maxcpus=3", "", nil, []string{"CPUs", "interrupts"}},
		{"broadcast", "no_ipi_broadcast=1", "", nil, []string{"IPI broadcast"}},
		{"IOMMU", "iomem=relaxed", "iomem=relaxed intel_iommu=on", []string{"-machine", "kernel-irqchip=split", "-device", "intel-iommu,intremap=on"}, []string{"IOMMU"}},
		{"locked down", "iomem=relaxed", "iomem=relaxed lockdown=integrity", nil, []string{"lockdown"}},
		{"memory used", "memmap=1572864K$0x120000000", "", nil, []string{"memory"}},
		{"strict", "iomem=relaxed", "", nil, []string{"memory"}},
		{"no CPU left", "maxcpus=3", "maxcpus=4", nil, []string{"CPUs"}},
		{"resets itself", "panic=0", "panic=10", nil, []string{"panic"}},
		{"encrypted", "iomem=relaxed", "iomem=relaxed mem_encrypt=on", nil, []string{"memory encryption"}},
		{"FRED", "iomem=relaxed", "iomem=relaxed fred=on", nil, []string{"NMI"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(good, c.from) {
				t.Fatalf("%q is not in %q", c.from, good)
			}
			bad := *m
			bad.Append, bad.Devices = strings.Replace(good, c.from, c.to, 1), c.devices
			console := bootToEnd(t, ctx, &bad)
			for _, what := range c.unfit {
				if !strings.Contains(console, "UNFIT  "+what+" ") {
					t.Errorf("%s is not unfit:\n%s", what, console)
				}
			}
			if !strings.Contains(console, "FAILED metal run") || strings.Contains(console, "PROTECTED") {
				t.Errorf("it started:\n%s", console)
			}
		})
	}
}

// TestMetalUnserved: an understudy that has all on the disk, and whose service does not come
// up, gives the machine back with nothing lost.
func TestMetalUnserved(t *testing.T) {
	tier.Full(t, "a service that does not start")
	m := bareMachine(t, "", "", strings.ReplaceAll(metalStart, "/role.json", "/unserved.json")+metalWork+"echo c > /proc/sysrq-trigger\n", unservedRole(t))
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	virtio.attach(t, m, disk)
	r, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(); err != nil { // it is reset, which ends it here
		t.Fatalf("%v\n%s", err, r.Console())
	}
	defer func() {
		if t.Failed() || testing.Verbose() {
			t.Logf("console:\n%s\nsecond:\n%s", r.Console(), r.Second())
		}
	}()
	left := lookInto(t, disk)
	checkFiles(t, r.Console(), func(path string) []byte {
		b, err := os.ReadFile(left + path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		return b
	})
}

// unservedRole is metalRole with a program that is not there.
func unservedRole(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "unserved.json")
	if err := os.WriteFile(path, []byte(strings.Replace(metalRole, `"busybox", "httpd"`, `"none"`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
