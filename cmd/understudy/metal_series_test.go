package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover"
)

// Flags that make metal sets: how often each case is run, and where the results go.
var (
	metalRuns  = flag.Int("metal.runs", 1, "how often TestMetalSeries has each kernel die in each way")
	metalJSON  = flag.String("metal.json", "", "the file that TestMetalSeries writes its results to (make metal)")
	metalTable = flag.String("metal.table", "", "the file whose last part TestMetalSeries writes anew with its table")
)

// metalCase is a machine of the series, and its death. Kernels are named as in
// scripts/kernels.sh. The system is Debian, with systemd, whose root file system and data are
// taken over, or small: an initramfs with a data disk, where only the size or the devices matter.
type metalCase struct {
	System  string `json:"system"`
	Active  string `json:"active"`
	Beside  string `json:"beside"`
	Way     string `json:"way"`
	Devices string `json:"devices"`
	MiB     int    `json:"mib"` // of the large file that only memory has
}

// metalMachine is a machine of the series, and how it dies.
type metalMachine struct {
	system, active, beside, devices string
	ways                            []string
	sizes                           []int
}

// metalMachines are the machines of make metal. None of Debian 12's compilers can build our
// module for the newest kernel.
var metalMachines = []metalMachine{
	{"Debian", "6.1-generic", "6.12-cloud", "virtio", []string{"panic", "hang-all", "oops-irq"}, []int{20}},
	{"Debian", "6.12-cloud", "default", "nvme", []string{"panic", "hang-all", "oops-irq"}, []int{20}},
	{"Debian", "newest-cloud", "6.12-cloud", "virtio", []string{"panic", "masked"}, []int{20}},
	{"small", "6.1-generic", "6.12-generic", "sata", []string{"panic"}, []int{20}},
	// How long the cache takes to be brought over, by its size: the paper's Figure 2.
	{"small", "6.1-generic", "6.12-cloud", "virtio", []string{"panic"}, cacheSizes},
}

var cacheSizes = []int{16, 40, 90} // MiB

func (m *metalMachine) String() string {
	return strings.Join([]string{m.system, m.active, m.beside, m.devices}, "-")
}

// cases returns the cases of the machine, each once.
func (m *metalMachine) cases() (all []metalCase) {
	for _, way := range m.ways {
		for _, mib := range m.sizes {
			all = append(all, metalCase{m.system, m.active, m.beside, way, m.devices, mib})
		}
	}
	return all
}

// metalSeriesDevices returns the devices by their names in the table. Both of Debian's disks
// are of one kind, without a bridge.
func metalSeriesDevices(m *metalMachine) metalDevices {
	switch m.devices {
	case "nvme":
		return nvme
	case "sata":
		return sata
	default:
		return virtio
	}
}

// metalResult is one run of a case. Times are in milliseconds.
type metalResult struct {
	metalCase
	Exact    bool            `json:"exact"`
	Served   float64         `json:"served_ms"`            // from the last word of the dead kernel to the first answer
	TCP      float64         `json:"nfs_tcp_ms,omitempty"` // likewise, of the NFS server, over TCP and UDP
	UDP      float64         `json:"nfs_udp_ms,omitempty"`
	Taken    float64         `json:"taken_ms"` // from the detection to the address
	Moved    float64         `json:"moved_ms"` // unsaved data, from memory until it is durable
	Files    int             `json:"files"`
	Verdict  string          `json:"verdict"`
	Rebooted float64         `json:"rebooted_ms,omitempty"` // of the same machine, from power-on to the first answer
	Steps    []takeover.Step `json:"steps,omitempty"`
}

// metalResults are the results of make metal. Runs add to its file.
type metalResults struct {
	At      time.Time     `json:"at"`
	Results []metalResult `json:"results"`
	Costs   []metalCost   `json:"costs,omitempty"` // the last measurement of each
}

// TestMetalSeries lets machines die again and again, and measures (make metal).
func TestMetalSeries(t *testing.T) {
	tier.Full(t, "kernels, deaths and sizes of a cache on bare machines")
	if *metalJSON == "" {
		t.Skip("make metal runs it, with a file for its results")
	}
	var all metalResults
	if b, err := os.ReadFile(*metalJSON); err == nil {
		if err := json.Unmarshal(b, &all); err != nil {
			t.Fatal(err)
		}
	}
	all.At = time.Now().UTC().Truncate(time.Second)
	for _, m := range metalMachines {
		t.Run(m.String(), func(t *testing.T) {
			vm(t)
			var d *debian
			if m.system == "Debian" {
				d = debianCase{bookworm, m.active, m.beside, metalSeriesDevices(&m), false}.install(t, debianInstall, debianOptions)
			}
			for n := range *metalRuns {
				for _, c := range m.cases() {
					t.Run(fmt.Sprintf("%s/%dMiB/%d", c.Way, c.MiB, n+1), func(t *testing.T) {
						r := metalResult{metalCase: c}
						defer func() {
							r.Exact = !t.Failed()
							all.Results = append(all.Results, r)
							all.keep(t)
						}()
						r.run(t, &m, d, n < metalReboots)
					})
				}
			}
		})
	}
	t.Run("cost", func(t *testing.T) {
		if costs := append(measureCost(t, "default", "default"), measureCopies(t, "default", "default")); !t.Failed() {
			all.Costs = costs
		}
	})
	t.Run("pair", func(t *testing.T) {
		all.Results = append(all.Results, pairInGuest(t, *metalRuns)...)
		all.keep(t)
	})
	all.keep(t)
	fmt.Print(all.table())
}

// keep writes the results so far, and their table.
func (m *metalResults) keep(t *testing.T) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(*metalJSON), 0o755)
	}
	err = errors.Join(err, os.WriteFile(*metalJSON+".new", b, 0o644), os.Rename(*metalJSON+".new", *metalJSON))
	if err == nil && *metalTable != "" {
		err = replaceTail(*metalTable, "## Measured", m.table())
	}
	if err != nil {
		t.Error(err)
	}
}

// metalReboots is in how many runs a machine with Debian is booted afterwards, to measure the reboot.
const metalReboots = 3

// run lets the machine of the case die once. d is the machine with Debian, or nil. With reboots, d is booted again to
// measure that.
func (r *metalResult) run(t *testing.T, m *metalMachine, d *debian, reboots bool) {
	var seen metalTakeover
	if d != nil {
		seen = d.dies(t, r.Way)
		if reboots && r.Way == m.ways[0] {
			r.Rebooted = ms(d.reboots(t))
		}
	} else {
		death, copies := metalDeath(t, r.Way, r.Active)
		script := strings.ReplaceAll(metalStart, metalLimits, death.limits) + strings.Replace(metalWorkOf, "LARGE", fmt.Sprint(r.MiB), 1) + death.script
		devices := metalSeriesDevices(m)
		machine := bareMachine{active: r.Active, beside: r.Beside, script: script, drivers: devices.drivers, files: copies}.make(t)
		seen = takeOverMetal(t, machine, devices, death)
	}
	r.TCP, r.UDP = ms(seen.tcp), ms(seen.udp)
	r.Served, r.Files, r.Verdict = ms(seen.served), seen.report.Files, seen.report.Verdict
	for _, c := range seen.report.Commits {
		r.Files += c.Files
	}
	r.time(seen.report.Steps)
}

// time takes the measured times from the steps of a takeover.
func (r *metalResult) time(steps []takeover.Step) {
	r.Steps = steps
	for _, s := range steps {
		switch s.Name {
		case takeover.StepAddress:
			r.Taken = s.End
		case "check", "commit", "gather", "apply", "sync":
			r.Moved += s.End - s.Start
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// table returns the results as text for docs/METAL.md.
func (m *metalResults) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Made by `make metal`, the last of it on %s: do not edit below. QEMU guests with 4 CPUs and 4 GiB, emulated; times in ms:\nthe least, the median and the most, where there are three or more.\n\n", m.At.Format(time.DateOnly))
	fmt.Fprintf(&b, "Served is from the dead kernel's last word to the first answer to a client outside, with the detection: by HTTP, and by NFSv3\nover TCP and UDP, by the handles that its clients had; taken is from\nthe detection until the address answers; moved is what was unsaved, out of memory and durable on the disk; reboot is the same\nmachine from its power on to the first answer. A machine with Debian has systemd, GRUB, and its root file system taken over.\nhang-all and masked: no CPU takes an interrupt any more (limit 3 s). oops-irq: in an interrupt. Pair: of understudy-lab demo, in such a\nguest with 2 CPUs, with KVM that the emulation has.\n\n")
	fmt.Fprintln(&b, "| system | kernel | beside it | death | disk | unsaved | exact | served | NFS, TCP | NFS, UDP | taken | moved | reboot |")
	fmt.Fprintln(&b, "|---|---|---|---|---|---|---|---|---|---|---|---|---|")
	for _, machine := range metalMachines {
		for _, c := range machine.cases() {
			m.row(&b, c)
		}
	}
	for _, mib := range cacheSizes {
		m.row(&b, pairCase(mib))
	}
	writeCosts(&b, m.Costs)
	return b.String()
}

// row writes a case as a row of the table, if it has been run.
func (m *metalResults) row(w io.Writer, c metalCase) {
	var exact, runs int
	var served, tcp, udp, taken, moved, rebooted []float64
	for _, r := range m.Results {
		if r.metalCase != c {
			continue
		}
		runs++
		if r.Exact {
			exact++
			served, taken, moved = append(served, r.Served), append(taken, r.Taken), append(moved, r.Moved)
			if r.TCP > 0 {
				tcp, udp = append(tcp, r.TCP), append(udp, r.UDP)
			}
		}
		if r.Rebooted > 0 {
			rebooted = append(rebooted, r.Rebooted)
		}
	}
	if runs > 0 {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %d MiB | %d of %d | %s | %s | %s | %s | %s | %s |\n",
			c.System, release(c.Active), release(c.Beside), c.Way, c.Devices, c.MiB, exact, runs, spread(served), spread(tcp), spread(udp), spread(taken), spread(moved), spread(rebooted))
	}
}

// release returns a kernel's release for its name: some names stand for newer kernels over time.
func release(name string) string {
	cache, err := dirs.Cache()
	if err != nil {
		return name
	}
	_, modules, err := dirs.Kernel(filepath.Join(cache, "kernels", name))
	if err != nil {
		return name
	}
	return strings.TrimSuffix(filepath.Base(modules), "-amd64")
}

// replaceTail replaces a file's text from a heading on.
func replaceTail(path, heading, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, _, _ := strings.Cut(string(b), "\n"+heading+"\n")
	whole := strings.TrimRight(before, "\n") + "\n\n" + heading + "\n\n" + text
	return errors.Join(os.WriteFile(path+".new", []byte(whole), 0o644), os.Rename(path+".new", path))
}

// spread returns the least, the median and the most of all, or all of them if there are fewer than three.
func spread(all []float64) string {
	s := slices.Sorted(slices.Values(all))
	switch len(s) {
	case 0:
		return "-"
	case 1:
		return fmt.Sprintf("%.0f", s[0])
	case 2:
		return fmt.Sprintf("%.0f, %.0f", s[0], s[1])
	}
	return fmt.Sprintf("%.0f, %.0f, %.0f", s[0], s[len(s)/2], s[len(s)-1])
}
