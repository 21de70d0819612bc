package main

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
)

// stressor is the program that stresses a kernel; scripts/kernels.sh installs it.
const stressor = "/usr/bin/stress-ng"

// metalStress is how long a kernel is stressed.
var metalStress = flag.Duration("metal.stress", 6*time.Minute, "for how long, at most, TestMetalBeside stresses a kernel with an understudy beside it")

// stressClasses are all classes of stress-ng, for an equal time each, except for gpu and security, which has
// no stressor that runs everywhere.
var stressClasses = strings.Fields("scheduler interrupt vm memory pipe filesystem io cpu cpu-cache network os device")

// stressExcluded are stressors that would change the machine's own devices and settings, or fill its memory, which is
// its disk, too; and opcode, since QEMU's emulation of random opcodes ends the kernel that they run on.
const stressExcluded = "bigheap,brk,stack,oom-pipe,physpage,resources,reboot,dev,sysinval,binderfs,rawdev,tmpfs,ramfs,mlockmany,shm,shm-sysv,memfd,fallocate,smi,swap,watchdog,ioport,opcode"

// metalBeside measures what a kernel does with an understudy beside it and without, in turns.
// Then it stresses the kernel in most of the available ways, with the understudy beside it
// and all limits at their defaults.
const metalBeside = `
PATH=$PATH:/usr/bin
DISK=/dev/vda
while [ ! -e $DISK ]; do sleep 0.1; done
mount -t ext4 $DISK /srv || echo "FAILED mount"
start() {
` + metalRun + `
}
protected() {
  understudy metal status > /tmp/status 2>&1
  cat /tmp/status
  grep -q '^protected' /tmp/status || { cat /tmp/run; understudy metal status -v; echo "FAILED: not protected any more"; drain; poweroff -f; }
}
measure() {
  stress-ng --temp-path /srv --cpu 1 --hdd 1 --hdd-bytes 32m --switch 1 --metrics-brief -t 8 > /tmp/measured 2>&1 || cat /tmp/measured
  grep -E ' (cpu|hdd|switch) ' /tmp/measured | while read line; do echo "MEASURED $1 $line"; done
}
kill $RUN
wait $RUN
measure warm
for n in 1 2 3; do
  measure without
  start
  measure with
  kill $RUN
  wait $RUN
done
start
mkdir /srv/stress
echo "from $(cut -d ' ' -f 1 /proc/uptime) s on"
for class in CLASSES; do
  timeout -s KILL SECONDS stress-ng --temp-path /srv/stress --class $class --sequential 3 -t EACH --exclude EXCLUDED > /tmp/stressed 2>&1
  grep -q dispatching /tmp/stressed || { cat /tmp/stressed; echo "FAILED to stress"; }
  echo "STRESSED $class until $(cut -d ' ' -f 1 /proc/uptime) s"
  protected
done
for n in 1 2 3 4 5; do
  for c in 1 2; do echo 0 > /sys/devices/system/cpu/cpu$c/online || echo "FAILED to take CPU $c out"; done
  for c in 1 2; do echo 1 > /sys/devices/system/cpu/cpu$c/online || echo "FAILED to bring CPU $c back"; done
done
protected
understudy metal status -v
rm -rf /srv/stress
cd /
umount /srv || echo "FAILED umount"
`

// TestMetalBeside checks that a kernel does as much with an understudy beside it as
// without; that the understudy survives the stress, which is not taken for a death; and
// that everything is taken over when the kernel dies then.
func TestMetalBeside(t *testing.T) {
	tier.Full(t, "a kernel that is stressed for minutes with an understudy beside it")
	if _, err := os.Stat(stressor); err != nil {
		tier.Lacks(t, err)
	}
	script := strings.NewReplacer(
		"EACH", strconv.Itoa(max(1, int(metalStress.Minutes()/6))), // a class has some 25 stressors
		"SECONDS", strconv.Itoa(int(metalStress.Seconds())/len(stressClasses)+1), "CLASSES", strings.Join(stressClasses, " "),
		"EXCLUDED", stressExcluded,
	).Replace(metalStart + metalBeside)
	death, files := metalDeath(t, "panic", "")
	m := bareMachine{script: strings.ReplaceAll(script, metalLimits, "") + metalWork + death.script, programs: []string{stressor}, files: files}.make(t)
	takeOverMetal(t, m, virtio, death)
	b, err := os.ReadFile(filepath.Join(m.Dir, "console0"))
	if err != nil {
		t.Fatal(err)
	}
	console := string(b)
	if got := strings.Count(console, "STRESSED "); got != len(stressClasses) || strings.Contains(console, "FAILED") {
		t.Errorf("it was stressed in %d ways, or something failed", got)
	}
	with, without := rates(console, "with"), rates(console, "without")
	for _, what := range slices.Sorted(maps.Keys(without)) {
		a, b := with[what], without[what]
		if len(a) != 3 || len(b) != 3 {
			t.Fatalf("%s was measured %d and %d times", what, len(a), len(b))
		}
		slices.Sort(a)
		slices.Sort(b)
		t.Logf("beside: %s: %.2f of what it does without: %.0f and %.0f a second (medians of 3)", what, a[1]/b[1], a[1], b[1])
	}
}

// rates returns what stress-ng reported for each stressor, in operations a second.
func rates(console, which string) map[string][]float64 {
	all := make(map[string][]float64)
	for line := range strings.Lines(console) {
		f := strings.Fields(line) // MEASURED which stress-ng: metrc: [PID] NAME OPS REAL USER SYSTEM RATE RATE
		if len(f) != 12 || f[0] != "MEASURED" || f[1] != which {
			continue
		}
		if rate, err := strconv.ParseFloat(f[10], 64); err == nil {
			all[f[5]] = append(all[f[5]], rate)
		}
	}
	return all
}
