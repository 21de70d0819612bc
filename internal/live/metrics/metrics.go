// Package metrics serves the numbers of a pair to Prometheus, over HTTP at /metrics. Names
// and units follow Prometheus's own guide (prometheus.io/docs/practices/naming).
package metrics

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Snapshot is the state of a pair at one moment.
type Snapshot struct {
	State          string    // one of States
	Since          time.Time // when the pair entered State
	Held           bool      // the active side stands still, but is not dead
	UnderstudyHeld bool      // the same of the understudy
	Unread         bool      // nothing that is in memory only would be salvaged
	Troubles       int       // the number of troubles that are reported
	Beat           time.Time // the active side's last beat; zero if there was none yet
	Understudy     time.Time // the understudy's last beat; zero if there was none yet, or no understudy
	Pause          time.Duration
	Limit          time.Duration // of a pause
	Unsaved        uint64        // bytes; has no metric while Known is false
	Known          bool
	HookFailures   int64
}

// States are the states that a pair may be in.
var States = []string{"protected", "unprotected", "taking over", "switching", "failed"}

// Switch is the cause of a takeover that was asked for.
const Switch = "switch"

// Takeover is a takeover that has completed.
type Takeover struct {
	At      time.Time
	Cause   string // one of the causes passed to New, or Switch
	Took    time.Duration
	Steps   []Step
	Files   int   // of which data was brought over
	Bytes   int64 // brought over
	Refused int   // things that were not brought over
}

// Step is one step of a takeover.
type Step struct {
	Name string
	Took time.Duration
}

// Metrics are the metrics of one pair.
type Metrics struct {
	registry *prometheus.Registry
	look     func() Snapshot

	takeovers             *prometheus.CounterVec
	took, steps           *prometheus.HistogramVec
	last                  prometheus.Gauge
	files, bytes, refused prometheus.Counter
}

// buckets are the histogram buckets of steps and takeovers, in seconds: from work in memory
// to a check of a large file system.
var buckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

// New makes the metrics of a pair. causes are the possible causes of a death, each of which is
// counted from zero on; look returns the current state of the pair.
func New(pair, version string, causes []string, look func() Snapshot) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), look: look}
	labels := prometheus.Labels{"pair": pair}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
	}
	m.takeovers = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "understudy_takeovers_total",
		Help: "Takeovers that came through since the supervisor started, by the cause of the death; switch: it was asked for.", ConstLabels: labels}, []string{"cause"})
	m.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "understudy_takeover_seconds",
		Help: "From the last sign of life until the address is on the understudy.", Buckets: buckets, ConstLabels: labels}, []string{"cause"})
	m.steps = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "understudy_takeover_step_seconds",
		Help: "What each step of a takeover took. Steps overlap.", Buckets: buckets, ConstLabels: labels}, []string{"step"})
	m.last = prometheus.NewGauge(prometheus.GaugeOpts{Name: "understudy_last_takeover_timestamp_seconds",
		Help: "When the last takeover began; 0: none yet.", ConstLabels: labels})
	m.files = counter("understudy_recovered_files_total", "Files of which takeovers brought over what was not on the disk.")
	m.bytes = counter("understudy_recovered_bytes_total", "Bytes that takeovers brought over.")
	m.refused = counter("understudy_refused_total", "Things that takeovers saw in a dead kernel's memory and did not bring over.")
	for _, cause := range append(slices.Clone(causes), Switch) {
		m.takeovers.WithLabelValues(cause)
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "understudy_build_info", Help: "1; the version is in the labels.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()}})
	build.Set(1)
	m.registry.MustRegister(m.takeovers, m.took, m.steps, m.last, m.files, m.bytes, m.refused, build,
		newState(labels, look), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// TookOver counts a takeover.
func (m *Metrics) TookOver(t Takeover) {
	m.takeovers.WithLabelValues(t.Cause).Inc()
	m.took.WithLabelValues(t.Cause).Observe(t.Took.Seconds())
	for _, s := range t.Steps {
		m.steps.WithLabelValues(s.Name).Observe(s.Took.Seconds())
	}
	m.last.Set(seconds(t.At))
	m.files.Add(float64(t.Files))
	m.bytes.Add(float64(t.Bytes))
	m.refused.Add(float64(t.Refused))
}

// seconds is a time as Prometheus represents it: seconds since 1970.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// Handler answers Prometheus.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}))
	return mux
}

// scrapeLimit bounds how long a client may take to send a request, and to read the answer, so
// that none keeps a connection for ever.
const scrapeLimit = 10 * time.Second

// Serve answers at an address until the server is closed. failed is called if the server ends
// for any other reason.
func (m *Metrics) Serve(at netip.AddrPort, failed func(error)) (*http.Server, error) {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	s := &http.Server{Handler: m.Handler(), ReadTimeout: scrapeLimit, WriteTimeout: scrapeLimit, IdleTimeout: time.Minute}
	go func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("serve metrics: %w", err))
		}
	}()
	return s, nil
}
