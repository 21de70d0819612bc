package metrics

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// scraped is the text that Prometheus gets.
func scraped(t *testing.T, m *Metrics) string {
	t.Helper()
	server := httptest.NewServer(m.Handler())
	defer server.Close()
	r, err := http.Get(server.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", r.Status, err)
	}
	return string(b)
}

var at = time.Unix(1_800_000_000, 500_000_000)

// filled returns metrics that all have a value.
func filled() *Metrics {
	m := New("web", "v1", []string{"heartbeat", "dying message"}, func() Snapshot {
		return Snapshot{State: "protected", Since: at, Troubles: 2, Beat: at, Understudy: at.Add(time.Second), Pause: 25 * time.Millisecond,
			Limit: 300 * time.Millisecond, Unsaved: 12345678, Known: true, HookFailures: 3}
	})
	m.TookOver(Takeover{At: at, Cause: "heartbeat", Took: 132 * time.Millisecond, Files: 12, Bytes: 3456, Refused: 1,
		Steps: []Step{{"fence", 3 * time.Millisecond}, {"names", 2 * time.Millisecond}}})
	return m
}

func TestMetrics(t *testing.T) {
	text := scraped(t, filled())
	for _, want := range []string{
		`understudy_protected{pair="web"} 1`,
		`understudy_state{pair="web",state="protected"} 1`,
		`understudy_state{pair="web",state="taking over"} 0`,
		`understudy_state_since_timestamp_seconds{pair="web"} 1.8000000005e+09`,
		`understudy_held{pair="web"} 0`,
		`understudy_troubles{pair="web"} 2`,
		`understudy_unsaved_bytes{pair="web"} 1.2345678e+07`,
		`understudy_last_beat_timestamp_seconds{pair="web",role="active"} 1.8000000005e+09`,
		`understudy_last_beat_timestamp_seconds{pair="web",role="understudy"} 1.8000000015e+09`,
		`understudy_longest_beat_pause_seconds{pair="web"} 0.025`,
		`understudy_beat_limit_seconds{pair="web"} 0.3`,
		`understudy_hook_failures_total{pair="web"} 3`,
		`understudy_takeovers_total{cause="heartbeat",pair="web"} 1`,
		`understudy_takeovers_total{cause="dying message",pair="web"} 0`,
		`understudy_takeovers_total{cause="switch",pair="web"} 0`,
		`understudy_takeover_seconds_sum{cause="heartbeat",pair="web"} 0.132`,
		`understudy_takeover_step_seconds_count{pair="web",step="names"} 1`,
		`understudy_takeover_step_seconds_bucket{pair="web",step="fence",le="0.0025"} 0`,
		`understudy_takeover_step_seconds_bucket{pair="web",step="fence",le="0.005"} 1`,
		`understudy_last_takeover_timestamp_seconds{pair="web"} 1.8000000005e+09`,
		`understudy_recovered_files_total{pair="web"} 12`,
		`understudy_recovered_bytes_total{pair="web"} 3456`,
		`understudy_refused_total{pair="web"} 1`,
		`version="v1"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestUnknown: what is not known has no metric, rather than a zero; and a pair that is held, or whose memory
// could not be read, does not count as protected.
func TestUnknown(t *testing.T) {
	text := scraped(t, New("web", "v1", nil, func() Snapshot { return Snapshot{State: "protected", Held: true} }))
	for _, name := range []string{"understudy_unsaved_bytes", "understudy_last_beat_timestamp_seconds"} {
		if strings.Contains(text, name) {
			t.Errorf("there is %s", name)
		}
	}
	unread := scraped(t, New("web", "v1", nil, func() Snapshot { return Snapshot{State: "protected", Unread: true} }))
	for what, text := range map[string]string{"is held": text, "is not read": unread} {
		if !strings.Contains(text, `understudy_protected{pair="web"} 0`) {
			t.Errorf("a pair that %s counts as protected", what)
		}
	}
}

func TestServe(t *testing.T) {
	m := filled()
	failed := func(err error) { t.Error(err) }
	s, err := m.Serve(netip.MustParseAddrPort("127.0.0.1:0"), failed)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.Serve(netip.MustParseAddrPort("192.0.2.1:1"), failed); err == nil {
		t.Error("it listens on an address that is not here")
	}
}

// TestDocumented: the dashboard, the alerts and docs/OPERATING.md name only metrics that
// exist, and the document names all of ours.
func TestDocumented(t *testing.T) {
	text := scraped(t, filled())
	var have []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (understudy_\w+) (\w+)`).FindAllStringSubmatch(text, -1) {
		have = append(have, m[1])
		if m[2] == "histogram" {
			have = append(have, m[1]+"_bucket", m[1]+"_sum", m[1]+"_count")
		}
	}
	if len(have) < 15 {
		t.Fatalf("there are only %v", have)
	}
	named := func(file string) map[string]bool {
		b, err := os.ReadFile("../../../" + file)
		if err != nil {
			t.Fatal(err)
		}
		names := make(map[string]bool)
		for _, name := range regexp.MustCompile(`\bunderstudy_[a-z_]+`).FindAll(b, -1) {
			names[string(bytes.TrimRight(name, "_"))] = true
		}
		for name := range names {
			if !slices.Contains(have, name) {
				t.Errorf("%s names %s, which is not there", file, name)
			}
		}
		return names
	}
	for _, file := range []string{"packaging/prometheus/understudy.rules.yml", "packaging/prometheus/understudy.test.yml", "packaging/grafana/understudy.json"} {
		if len(named(file)) == 0 {
			t.Errorf("%s names no metric", file)
		}
	}
	in := named("docs/OPERATING.md")
	for _, name := range have {
		if !in[name] && !slices.ContainsFunc(slices.Collect(maps.Keys(in)), func(base string) bool { return strings.HasPrefix(name, base+"_") }) {
			t.Errorf("docs/OPERATING.md does not name %s", name)
		}
	}
}
