package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/barelab"
	labfault "understudy.dev/understudy/internal/lab/fault"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestMetalStart checks that a second stock kernel boots beside the first, which runs on, even
// if one of the first kernel's CPUs is taken offline for longer than the limit of its beat; and
// that nobody can take the understudy's CPU or suspend the machine. The understudy stops when it
// is told to, an NMI does not lead its CPU to where the firmware's vector points (the reset
// vector, in that case), and another understudy starts in its place.
func TestMetalStart(t *testing.T) {
	tier.Full(t, "an understudy that stops, and another in its place")
	m := bareMachine{script: strings.ReplaceAll(metalStart, metalLimits, " --limit 1m") + `
for n in 1 2 3 4; do
  understudy metal status
  sleep 0.2
done
echo 1 > /sys/devices/system/cpu/cpu3/online && echo "FAILED to keep the CPU of the understudy"
cat /sys/devices/system/cpu/cpu1/hotplug/target > /sys/devices/system/cpu/cpu3/hotplug/target && echo "FAILED to keep the CPU of the understudy by hotplug"
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
busybox devmem 0x8 32 0xf000fff0
busybox devmem 0xfee00310 32 0x03000000
busybox devmem 0xfee00300 32 0x4400
sleep 1
` + strings.ReplaceAll(metalRun, "PROTECTED", "AGAIN") + `
understudy metal status
cat /proc/uptime
kill $RUN
wait $RUN
drain
poweroff -f
`}.make(t)
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

// metalWorkOf leaves files in memory only, and prints what each must be. It also prints the
// sectors written before and after that, to show that the disk was not written to.
const metalWorkOf = `
for s in vm/dirty_writeback_centisecs=0 vm/dirty_expire_centisecs=360000 vm/dirty_background_bytes=900000000 vm/dirty_bytes=1000000000; do
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
drain
`

// metalWork is metalWorkOf with a large file of 20 MiB.
var metalWork = strings.Replace(metalWorkOf, "LARGE", "20", 1)

// metalWorkMore is metalWork on file systems that are mounted already, with a file in more, after a further command.
func metalWorkMore(t *testing.T, command string) string {
	t.Helper()
	return rewritten(t, metalWork, [][2]string{
		{"mount -t ext4 -o commit=86400,noinit_itable /dev/$DISK /srv || echo \"FAILED mount\"\n", command},
		{"find new old* ", "dd if=/dev/urandom of=more/file bs=70001 count=1 2>/dev/null\nfind new old* more "},
	})
}

// rewritten returns a script of other tests in which the first of each pair, which must be there, is replaced once by the
// second.
func rewritten(t *testing.T, script string, pairs [][2]string) string {
	t.Helper()
	for _, p := range pairs {
		if !strings.Contains(script, p[0]) {
			t.Fatalf("the script of the other tests has changed: it has no %q", p[0])
		}
		script = strings.Replace(script, p[0], p[1], 1)
	}
	return script
}

// TestMetalTakeover checks that the understudy has every file exactly as it was, at the
// same address and MAC, after the machine's own kernel has died.
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
			m := bareMachine{active: c.active, beside: c.beside, script: script, drivers: c.devices.drivers, files: copies}.make(t)
			if c.name == "hang-all" {
				m.Append = "no5lvl" // page tables of four levels, although the emulated CPU has five
			}
			takeOverMetal(t, m, c.devices, death)
		})
	}
}

// death is a way for the machine's own kernel to die.
type death struct {
	script string        // a script of sh, for the dying kernel
	cause  string        // beginning of the verdict
	limits string        // of metal run
	delay  time.Duration // from the end of the script to the death
}

// metalDeath returns a death of a kernel, and the files that its script needs in /. An oops happens
// in an interrupt. In a hang no CPU takes interrupts any more: our module sees to that, or they are
// masked in the local APIC (Intel SDM volume 3, 11.8.3.1), which is possible with any kernel.
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

// takeOverMetal runs a machine that dies, and fails the test unless everything is there afterwards.
func takeOverMetal(t *testing.T, m *barelab.Machine, d metalDevices, death death) (seen metalTakeover) {
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append += " " + parameters(t, ctx, m) + os.Getenv("METAL_DEBUG")
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	ns := d.attach(t, m, disk)
	r, end := startMetal(t, ctx, m)
	defer end()
	client, fetch, served := outlived(t, ctx, r, ns, death.delay)
	seen.served = served
	checkFiles(t, r.Console(), fetch)
	checkMAC(t, ns)
	seen.report = metalReport(t, fetch, ":81/takeover.json")
	report := &seen.report
	files := report.Files // files that the last commit did not bring
	for _, c := range report.Commits {
		files += c.Files
	}
	if !strings.HasPrefix(report.Verdict, death.cause) || len(report.Refused) > 0 || len(report.Commits) != 1 || files < 20 || !report.Durable {
		t.Errorf("the report is %s: %+v", report.Verdict, report.Report)
	}
	if report.CPUs != 3 { // of four; the boot CPU stays parked
		t.Errorf("the understudy has %d CPUs", report.CPUs)
	}
	givesBack(t, client, r, "/cgi-bin/return")
	checkDisk(t, r.Console(), disk)
	return seen
}

// resets runs a machine until it is reset, which ends it here, and returns what it printed.
func resets(t *testing.T, ctx context.Context, m *barelab.Machine) (console string) {
	t.Helper()
	r := startBorn(t, ctx, m)
	err := r.Wait()
	t.Cleanup(func() {
		if t.Failed() || testing.Verbose() {
			t.Logf("console:\n%s\nsecond:\n%s", r.Console(), r.Second())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.Console()
}

// checkDisk is checkFiles for the files on an unmounted disk.
func checkDisk(t *testing.T, console, disk string) {
	t.Helper()
	left := lookInto(t, disk)
	checkFiles(t, console, func(path string) []byte {
		return readLeft(t, left+path)
	})
}

// checkFiles compares what is served with what the dead kernel reported, which it had in
// memory only.
func checkFiles(t *testing.T, console string, fetch func(path string) []byte) {
	t.Helper()
	var written []int
	for line := range strings.Lines(console) {
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[0] != "WRITTEN" {
			continue
		}
		var sectors int
		if _, err := fmt.Sscan(fields[1], &sectors); err != nil {
			t.Fatal(err)
		}
		written = append(written, sectors)
	}
	if len(written) != 2 {
		t.Fatalf("what was written was told %d times", len(written))
	}
	if kib := (written[1] - written[0]) / 2; kib > 1024 {
		t.Errorf("%d KiB reached the disk before the crash", kib)
	}
	checkTold(t, console, 23, []string{"/old2", "/old4", "/new/file3"}, fetch)
}

// TestMetalRefused checks that a machine that is not fit is told what is wrong with it, and
// that nothing is started.
func TestMetalRefused(t *testing.T) {
	tier.Full(t, "machines that are not fit")
	m := bareMachine{script: metalStart}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	good := parameters(t, ctx, m)
	for _, c := range []struct {
		name, from, to string
		devices        []string
		unfit          []string
	}{
		// The first has fewer possible CPUs, so that the kernel uses logical destinations, and keeps all of its CPUs.
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

// TestMetalLacking checks that an understudy whose kernel cannot drive a disk or an interface
// of its role, or whose image lacks a program, does not protect, and reports what it lacks.
func TestMetalLacking(t *testing.T) {
	tier.Full(t, "an understudy without drivers")
	role := filepath.Join(t.TempDir(), "lacking.json")
	if err := os.WriteFile(role, []byte(strings.Replace(metalRole, `"busybox", "httpd"`, `"none"`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	m := bareMachine{
		active: "6.1-generic", beside: "6.12-cloud", ownDrivers: sata.drivers, files: []string{role},
		script: strings.ReplaceAll(metalStart, "/role.json", "/lacking.json"),
	}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	sata.attach(t, m, disk)
	console := bootToEnd(t, ctx, m)
	for _, text := range []string{"FAILED metal run", "lacks what a takeover needs", "driver ahci", "driver e1000e", "driver sd", "program none"} {
		if !strings.Contains(console, text) {
			t.Errorf("%q was not said:\n%s", text, console)
		}
	}
	if strings.Contains(console, "PROTECTED") {
		t.Error("it protects")
	}
}

// TestMetalUnserved checks that an understudy that has everything on the disk, but whose
// service does not come up, gives the machine back with nothing lost.
func TestMetalUnserved(t *testing.T) {
	tier.Full(t, "a service that does not start")
	m := bareMachine{
		script: strings.ReplaceAll(metalStart, "/role.json", "/unserved.json") + metalWork + "echo c > /proc/sysrq-trigger\n",
		files:  []string{unservedRole(t)},
	}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	virtio.attach(t, m, disk)
	checkDisk(t, resets(t, ctx, m), disk)
}

// unservedRole is metalRole with a program that does not exist in place of both services.
func unservedRole(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "unserved.json")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(metalRole, `"busybox", "httpd"`, `"busybox", "none"`)), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkTold compares files with the sums that said has of them, checks that there are want of
// them, and that the files in gone do not exist.
func checkTold(t *testing.T, said string, want int, gone []string, fetch func(path string) []byte) {
	t.Helper()
	sums := 0
	for line := range strings.Lines(said) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "SUM" {
			continue
		}
		sums++
		if got := fmt.Sprintf("%x", sha256.Sum256(fetch("/"+fields[2]))); got != fields[1] {
			t.Errorf("%s is %s, and was %s", fields[2], got, fields[1])
		}
	}
	if sums != want {
		t.Fatalf("%d files were told of:\n%s", sums, said)
	}
	for _, path := range gone {
		if fetch(path) != nil {
			t.Errorf("%s is there again", path)
		}
	}
}
