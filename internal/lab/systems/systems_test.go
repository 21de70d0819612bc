package systems

import (
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestSystems checks that all that programs had acknowledged is there after a takeover.
func TestSystems(t *testing.T) {
	tier.Full(t, "Debian with PostgreSQL, git, nginx, Prometheus and podman")
	if os.Getuid() != 0 {
		tier.Lacks(t, "not root: pairs need namespaces and taps")
	}
	const understudy = "../../../bin/understudy"
	if _, err := os.Stat(understudy); err != nil {
		tier.Lacks(t, err)
	}
	for _, suite := range Suites {
		t.Run(suite.Name, func(t *testing.T) {
			dir, err := netlab.WorkDir("systems-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			r, err := Run(t.Context(), Options{Dir: dir, Understudy: understudy, Suite: suite, Programs: suite.Programs(), Log: t.Output()})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range r.Of {
				t.Logf("%s: %d acknowledged; after the takeover %+v; after a boot %+v", o.Name, o.Acknowledged, o.Takeover, o.Plain)
			}
			for _, w := range r.Exact() {
				t.Error(w)
			}
		})
	}
}

func TestAcks(t *testing.T) {
	count, last := acks("boot\r\nACK git 0a1\r\nACK git ff2\r\nACK prometheus 17@1700000000\r\nACK postgres-nofsync 1\nACK git cut")
	if !maps.Equal(count, map[string]int{"git": 2, "prometheus": 17, "postgres-nofsync": 1}) ||
		!maps.Equal(last, map[string]string{"git": "ff2", "prometheus": "17@1700000000", "postgres-nofsync": "1"}) {
		t.Errorf("%v, %v", count, last)
	}
}

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		status int
		output string
		want   Judgement
	}{
		{0, "FOUND 12\n", Judgement{12, ""}},
		{0, "nothing\n", Judgement{0, ""}},
		{1, "FOUND 3\nerror: bad object\n", Judgement{3, "error: bad object"}},
		{2, "", Judgement{0, "its check ended with status 2"}},
	} {
		if got := judge(tt.status, tt.output); got != tt.want {
			t.Errorf("judge(%d, %q) is %+v", tt.status, tt.output, got)
		}
	}
}

// TestExact checks that what is lost, too much or wrong is reported, and reaches the table.
func TestExact(t *testing.T) {
	r := &Result{Suite: Suites[0], Kernel: "6.12", After: time.Second, Of: []Outcome{
		{Program: Program{Name: "a"}, Acknowledged: 3, Takeover: Judgement{3, ""}, Plain: Judgement{1, "bad|object"}},
		{Program: Program{Name: "b"}, Acknowledged: 3, Takeover: Judgement{2, ""}},
		{Program: Program{Name: "c"}, Acknowledged: 3, Takeover: Judgement{3, "broken"}},
	}}
	if got := r.Exact(); len(got) != 2 || !strings.HasPrefix(got[0], "b: ") || got[1] != "c: broken" {
		t.Errorf("wrong: %q", got)
	}
	table := Markdown([]*Result{r, {Suite: Suites[1], Kernel: "6.1", Of: r.Of[:1]}}, time.Time{})
	for _, row := range []string{"Debian 12 (kernel 6.1)", "Debian 13 (kernel 6.12)", "| 3 | 0 | 1 of 1 good | 2 | 0 of 1 good: bad/object |", "| 3 | 1 | 1 of 1 good | 3 |", "0 of 1 good: broken"} {
		if !strings.Contains(table, row) {
			t.Errorf("no %q in\n%s", row, table)
		}
	}
}
