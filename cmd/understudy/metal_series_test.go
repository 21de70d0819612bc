package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/takeover"
)

// What make metal says: how often each case, and where the results go.
var (
	metalRuns  = flag.Int("metal.runs", 1, "how often TestMetalSeries has each kernel die in each way")
	metalJSON  = flag.String("metal.json", "", "the file that TestMetalSeries writes its results to (make metal)")
	metalTable = flag.String("metal.table", "", "the file whose last part TestMetalSeries writes anew with its table")
)

// metalCase is a machine of the series. A module of ours, for the kernels that there is one
// for, has it hang or oops; the others panic by sysrq.
type metalCase struct {
	Active  string `json:"active"` // kernels, as scripts/kernels.sh names them
	Beside  string `json:"beside"`
	Way     string `json:"way"`
	Devices string `json:"devices"`
	MiB     int    `json:"mib"` // of the large file that only memory has
}

// metalSeries are the cases of make metal.
func metalSeries() (all []metalCase) {
	for _, kernels := range [][2]string{{"6.1-generic", "6.1-generic"}, {"6.12-cloud", "6.1-generic"}, {"newest-cloud", "6.12-cloud"}} {
		for i, way := range []string{"panic", "hang-all", "oops"} {
			if kernels[0] == "newest-cloud" && way != "panic" {
				continue // no compiler of Debian 12's builds a module for it
			}
			all = append(all, metalCase{kernels[0], kernels[1], way, []string{"virtio", "nvme"}[i%2], 20})
		}
	}
	all = append(all, metalCase{"newest-cloud", "newest-cloud", "panic", "sata", 20})
	// How long the cache takes to be brought over, by its size: the paper's Figure 2.
	for _, mib := range []int{16, 40, 90} {
		all = append(all, metalCase{"6.1-generic", "6.12-cloud", "panic", "virtio", mib})
	}
	return all
}

// metalResult is one run of a case. Times are in milliseconds.
type metalResult struct {
	metalCase
	Exact  bool            `json:"exact"`
	Served float64         `json:"served_ms"` // from the last word of the dead kernel to the first answer
	Taken  float64         `json:"taken_ms"`  // from the detection to the address
	Moved  float64         `json:"moved_ms"`  // what was unsaved, out of memory and made durable
	Files  int             `json:"files"`
	Steps  []takeover.Step `json:"steps,omitempty"`
}

// metalResults are what make metal leaves.
type metalResults struct {
	At      time.Time     `json:"at"`
	Reboots []float64     `json:"reboots_ms"` // of the same machine, from its power on to the first answer
	Results []metalResult `json:"results"`
}

// TestMetalSeries has machines die again and again, and measures: make metal.
func TestMetalSeries(t *testing.T) {
	tier.Full(t, "kernels, deaths and sizes of a cache on bare machines")
	if *metalJSON == "" {
		t.Skip("make metal runs it, with a file for its results")
	}
	all := metalResults{At: time.Now().UTC().Truncate(time.Second)}
	keep := func() {
		b, err := json.MarshalIndent(all, "", "  ")
		if err == nil {
			err = os.MkdirAll(filepath.Dir(*metalJSON), 0o755)
		}
		if err = errors.Join(err, os.WriteFile(*metalJSON, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range *metalRuns {
		t.Run(fmt.Sprintf("reboot/%d", n+1), func(t *testing.T) {
			all.Reboots = append(all.Reboots, ms(rebootMetal(t)))
		})
		for _, c := range metalSeries() {
			t.Run(fmt.Sprintf("%s-beside-%s/%s/%dMiB/%d", c.Beside, c.Active, c.Way, c.MiB, n+1), func(t *testing.T) {
				r := metalResult{metalCase: c}
				defer func() {
					r.Exact = !t.Failed()
					all.Results = append(all.Results, r)
					keep()
				}()
				r.run(t)
			})
		}
	}
	table := all.table()
	fmt.Print(table)
	if *metalTable == "" {
		return
	}
	if err := replaceTail(*metalTable, "## Measured", table); err != nil {
		t.Error(err)
	}
}

// run has the machine of the case die once.
func (r *metalResult) run(t *testing.T) {
	death, copies := metalDeath(t, r.Way, r.Active)
	script := strings.ReplaceAll(metalStart, metalLimits, death.limits) + strings.Replace(metalWorkOf, "LARGE", fmt.Sprint(r.MiB), 1) + death.script
	devices := map[string]metalDevices{"virtio": virtio, "nvme": ported, "sata": sata}[r.Devices]
	seen := takeOverMetal(t, bareMachineWith(t, devices.drivers, nil, r.Active, r.Beside, script, copies...), devices, death)
	r.Served, r.Steps, r.Files = ms(seen.served), seen.report.Steps, seen.report.Files
	for _, c := range seen.report.Commits {
		r.Files += c.Files
	}
	for _, s := range r.Steps {
		switch s.Name {
		case takeover.StepAddress:
			r.Taken = s.End
		case "check", "commit", "gather", "apply", "sync":
			r.Moved += s.End - s.Start
		}
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// rebootMetal is how long the same machine takes to serve after it was reset: firmware, its
// kernel, the disk, the web server; nothing else is started, so a real system takes longer.
func rebootMetal(t *testing.T) time.Duration {
	m := bareMachine(t, "6.1-generic", "6.1-generic", `
while [ ! -e /dev/vda ]; do sleep 0.01; done
mount -t ext4 /dev/vda /srv
ip addr add 10.77.0.2/24 dev eth0
ip link set eth0 up
httpd -f -p 80 -h /srv
`)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	ns := virtio.attach(t, m, disk)
	start := time.Now()
	r, err := m.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{DialContext: ns.DialContext, DisableKeepAlives: true}, Timeout: time.Second}
	for {
		if _, err = get(client, "http://10.77.0.2/old1"); err == nil {
			return time.Since(start)
		}
		if ctx.Err() != nil {
			t.Fatalf("%v\n%s", err, r.Console())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// table is what the results are, for docs/METAL.md.
func (m *metalResults) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Made by `make metal` on %s: do not edit below. QEMU guests, emulated; times in ms, the least, the median and\nthe most.\n\n", m.At.Format(time.DateOnly))
	fmt.Fprintf(&b, "Served is from the dead kernel's last word to the first answer to a client outside, with the detection; taken is from\nthe detection until the address answers; moved is what was unsaved, out of memory and durable on the disk.\n\n")
	fmt.Fprintln(&b, "| kernel | beside it | death | disk | unsaved | exact | served | taken | moved |")
	fmt.Fprintln(&b, "|---|---|---|---|---|---|---|---|---|")
	for _, c := range metalSeries() {
		var exact, runs int
		var served, taken, moved []float64
		for _, r := range m.Results {
			if r.metalCase != c {
				continue
			}
			runs++
			if r.Exact {
				exact++
				served, taken, moved = append(served, r.Served), append(taken, r.Taken), append(moved, r.Moved)
			}
		}
		if runs > 0 {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %d MiB | %d of %d | %s | %s | %s |\n",
				c.Active, c.Beside, c.Way, c.Devices, c.MiB, exact, runs, spread(served), spread(taken), spread(moved))
		}
	}
	fmt.Fprintf(&b, "\nThe same machine that is reset, with its kernel, the disk and the web server and nothing else, serves after: %s.\n", spread(m.Reboots))
	return b.String()
}

// replaceTail writes a file anew from a heading on.
func replaceTail(path, heading, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, _, _ := strings.Cut(string(b), "\n"+heading+"\n")
	whole := strings.TrimRight(before, "\n") + "\n\n" + heading + "\n\n" + text
	return errors.Join(os.WriteFile(path+".new", []byte(whole), 0o644), os.Rename(path+".new", path))
}

// spread is the least, the median and the most.
func spread(all []float64) string {
	if len(all) == 0 {
		return "-"
	}
	s := slices.Sorted(slices.Values(all))
	return fmt.Sprintf("%.0f, %.0f, %.0f", s[0], s[len(s)/2], s[len(s)-1])
}
