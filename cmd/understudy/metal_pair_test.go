package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/barelab"
	"understudy.dev/understudy/internal/lab/demo"
	"understudy.dev/understudy/internal/lab/systems"
)

// pairScript lets pairs in a guest die, RUNS times with each of SIZES unsaved.
const pairScript = barelab.Drain + `
echo ` + booted + `
export HOME=/root UNDERSTUDY_CACHE=/lab/cache
mkdir -p /lab/kernel
tar -C /lab/kernel -xf /lab/kernel.tar
for mib in SIZES; do
  /lab/understudy-lab demo --kernel /lab/kernel --contrast=false --patient --runs RUNS --mib $mib --json > /lab/$mib.json && echo "DIED of $mib MiB" || echo "FAILED with $mib MiB"
done
sync
drain
systemctl poweroff -ff
`

const pairUnit = `[Service]
ExecStart=/bin/bash /lab/pair.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
`

func pairCase(mib int) metalCase {
	return metalCase{System: "pair", Active: "default", Beside: "default", Way: "panic", Devices: "virtio", MiB: mib}
}

// pairInGuest runs a pair in a guest that is emulated like the bare machines, and has as much memory. The pair's active
// kernel dies runs times with each of cacheSizes unsaved.
func pairInGuest(t *testing.T, runs int) (results []metalResult) {
	vm(t)
	runs = max(runs, 2) // for a single run, the demo has another output format
	root, err := systems.Find(t.Context(), "host")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	_, modules := metalKernel(t, "")
	lab, err := filepath.Abs("../../bin/understudy-lab")
	if err != nil {
		t.Fatal(err)
	}
	tree := strings.TrimSuffix(modules, filepath.Join("/lib/modules", filepath.Base(modules)))
	var sizes []string
	for _, mib := range cacheSizes {
		sizes = append(sizes, fmt.Sprint(mib))
	}
	script := strings.NewReplacer("SIZES", strings.Join(sizes, " "), "RUNS", fmt.Sprint(runs)).Replace(pairScript)
	for _, args := range [][]string{{"cp", "--sparse=always", root.Image, in("disk.img")}, {"tar", "-C", tree, "-cf", in("kernel.tar"), "boot", "lib"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	err = errors.Join(
		os.WriteFile(in("pair.sh"), []byte(script), 0o600), os.WriteFile(in("lab.service"), []byte(pairUnit), 0o600),
		barelab.PutAt(in("disk.img"), 0, []barelab.File{
			{Path: "/lab/understudy-lab", Source: lab, Executable: true}, {Path: "/lab/kernel.tar", Source: in("kernel.tar")},
			{Path: "/lab/pair.sh", Source: in("pair.sh")}, {Path: "/etc/systemd/system/lab.service", Source: in("lab.service")},
		}))
	if err != nil {
		t.Fatal(err)
	}
	console := bootToEnd(t, t.Context(), &barelab.Machine{Kernel: root.Kernel, Image: root.Initramfs, Dir: dir, CPUs: 2, // of the host; more would wait for each other
		Append:  "root=LABEL=root ro systemd.wants=lab.service systemd.mask=serial-getty@ttyS0.service " + systems.Nested,
		Devices: []string{"-drive", "if=virtio,format=raw,cache=unsafe,file=" + in("disk.img")}})
	for _, mib := range cacheSizes {
		text, err := exec.Command("debugfs", "-R", fmt.Sprintf("cat /lab/%d.json", mib), in("disk.img")).Output()
		var series demo.Series
		if err == nil {
			err = json.Unmarshal(text, &series)
		}
		if err != nil || len(series.Runs) != runs {
			t.Fatalf("%d runs with %d MiB: %v; the console:\n%s", len(series.Runs), mib, err, console)
		}
		for _, d := range series.Runs {
			r := metalResult{metalCase: pairCase(mib), Exact: d.Held() && d.OutageMS != nil, Files: d.Files, Verdict: d.Verdict}
			if r.Exact {
				r.Served = *d.OutageMS
			} else {
				t.Errorf("seed %d, %d MiB: %v", d.Seed, mib, d.Failures)
			}
			r.time(d.Steps)
			results = append(results, r)
		}
	}
	return results
}
