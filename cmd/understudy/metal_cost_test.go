package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
)

// Programs that measure; scripts/kernels.sh installs them.
var meters = []string{"/usr/bin/fio", "/usr/bin/cyclictest"}

// metalTurns is how often is measured with an understudy beside the kernel, and without, in turns.
const metalTurns = 5

// metalCostScript measures in turns. Fields of fio's line are those of its HOWTO, "Terse output".
const metalCostScript = `
PATH=$PATH:/usr/bin
while [ ! -e /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /srv || echo "FAILED mount"
start() {
` + metalRun + `
}
measured() { echo "MEASURED $*"; }
measure() {
  f() { fio --name=x --filename=/srv/measured --size=48m --output-format=terse --terse-version=3 "$@"; }
  measured $1 random $(f --rw=randwrite --bs=4k --direct=1 --time_based --runtime=6 | busybox cut -d ';' -f 49)
  measured $1 sequential $(f --rw=write --bs=1m --end_fsync=1 --loops=6 | busybox cut -d ';' -f 48)
  rm /srv/measured
  set -- $1 $(cyclictest --quiet --mlockall --priority=80 --interval=2000 --duration=6 | busybox sed -n 's/.*Avg: *\([0-9]*\) .*Max: *\([0-9]*\).*/\1 \2/p')
  measured $1 mean $2
  measured $1 worst $3
}
measure warm
for n in TURNS; do
  measure without
  start
  measure with
  kill $RUN
  wait $RUN
done
poweroff -f
`

// metalCosts is what is measured: by what name, in the table's words.
var metalCosts = []struct{ what, text string }{
	{"random", "fio, 4 KiB written at random past the cache, a second"},
	{"sequential", "fio, 1 MiB written after the other, with an fsync, KiB a second"},
	{"mean", "cyclictest, a real-time thread wakes up late by, mean, us"},
	{"worst", "the same, at most, us"},
}

// metalCost is one thing measured in turns, on a small machine.
type metalCost struct {
	Active  string    `json:"active"`
	Beside  string    `json:"beside"`
	What    string    `json:"what"` // of metalCosts
	With    []float64 `json:"with"`
	Without []float64 `json:"without"`
}

// measureCost measures what a kernel does with an understudy beside it, and without.
func measureCost(t *testing.T, active, beside string) (all []metalCost) {
	for _, p := range meters {
		if _, err := os.Stat(p); err != nil {
			tier.Lacks(t, err)
		}
	}
	turns := strings.TrimSpace(strings.Repeat("turn ", metalTurns))
	m := bareMachine{active: active, beside: beside, script: parametersFirst + strings.Replace(metalCostScript, "TURNS", turns, 1), programs: meters}.make(t)
	ctx, cancel := context.WithTimeout(context.Background(), metalLimit)
	defer cancel()
	m.Append = parameters(t, ctx, m)
	disk := filepath.Join(m.Dir, "data.img")
	makeData(t, disk)
	virtio.attach(t, m, disk)
	console := bootToEnd(t, ctx, m)
	t.Logf("it said:\n%s", console)
	if strings.Contains(console, "FAILED") {
		t.Error("something failed")
	}
	for _, c := range metalCosts {
		r := metalCost{Active: active, Beside: beside, What: c.what, With: measured(t, console, "with "+c.what), Without: measured(t, console, "without "+c.what)}
		if len(r.With) != metalTurns || len(r.Without) != metalTurns {
			t.Errorf("%s was measured %d and %d times", c.what, len(r.With), len(r.Without))
		}
		all = append(all, r)
	}
	return all
}

// measured are the figures of a name that a console has.
func measured(t *testing.T, console, name string) (all []float64) {
	t.Helper()
	for line := range strings.Lines(console) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "MEASURED "+name+" ")
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || v <= 0 {
			t.Errorf("%s is %q", name, text)
		}
		all = append(all, v)
	}
	return all
}

// writeCosts is the table of what was measured last of each.
func writeCosts(w io.Writer, all []metalCost) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\nWhat a small machine (kernel %s, virtio) does with an understudy (%s) beside its kernel and without, %d times in turns in one run:\nthe least, the median and the most.\n\n",
		release(all[0].Active), release(all[0].Beside), len(all[0].With))
	fmt.Fprintln(w, "| what | without | with | ratio of the medians |")
	fmt.Fprintln(w, "|---|---|---|---|")
	for _, c := range metalCosts {
		i := slices.IndexFunc(all, func(r metalCost) bool { return r.What == c.what })
		if i >= 0 && len(all[i].With) > 0 && len(all[i].Without) > 0 {
			fmt.Fprintf(w, "| %s | %s | %s | %.2f |\n", c.text, spread(all[i].Without), spread(all[i].With), median(all[i].With)/median(all[i].Without))
		}
	}
}

func median(all []float64) float64 { return slices.Sorted(slices.Values(all))[len(all)/2] }
