package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
)

// state is the collector of the metrics that a Snapshot gives.
type state struct {
	look func() Snapshot

	protected, state, since, held, troubles, unsaved, beat, pause, limit, hooks *prometheus.Desc
}

func newState(labels prometheus.Labels, look func() Snapshot) *state {
	desc := func(name, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, variable, labels)
	}
	return &state{
		look:      look,
		protected: desc("understudy_protected", "1 if an understudy has rehearsed and waits, and the active side runs, and its kernel is found in its memory; else 0."),
		state:     desc("understudy_state", "1 for the state that the pair is in, 0 for the others.", "state"),
		since:     desc("understudy_state_since_timestamp_seconds", "Since when the pair is in its state."),
		held:      desc("understudy_held", "1 if the active side stands still for a reason outside its kernel; else 0."),
		troubles:  desc("understudy_troubles", "What of a side does not work, though it runs."),
		unsaved:   desc("understudy_unsaved_bytes", "Bytes that the active kernel counts as not on their disks: what its death would leave to be salvaged."),
		beat:      desc("understudy_last_beat_timestamp_seconds", "When a side was last seen to beat.", "role"),
		pause:     desc("understudy_longest_beat_pause_seconds", "The longest pause of the active side's beat while it lived."),
		limit:     desc("understudy_beat_limit_seconds", "The pause of the beat that counts as death."),
		hooks:     desc("understudy_hook_failures_total", "Runs of hooks that failed."),
	}
}

// Describe implements prometheus.Collector.
func (s *state) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.protected, s.state, s.since, s.held, s.troubles, s.unsaved, s.beat, s.pause, s.limit, s.hooks} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (s *state) Collect(to chan<- prometheus.Metric) {
	now := s.look()
	gauge := func(d *prometheus.Desc, v float64, values ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, values...)
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(s.protected, flag(now.State == "protected" && !now.Held && !now.UnderstudyHeld && !now.Unread))
	for _, name := range States {
		gauge(s.state, flag(now.State == name), name)
	}
	gauge(s.since, seconds(now.Since))
	gauge(s.held, flag(now.Held))
	gauge(s.troubles, float64(now.Troubles))
	if now.Known {
		gauge(s.unsaved, float64(now.Unsaved))
	}
	if !now.Beat.IsZero() {
		gauge(s.beat, seconds(now.Beat), "active")
	}
	if !now.Understudy.IsZero() {
		gauge(s.beat, seconds(now.Understudy), "understudy")
	}
	gauge(s.pause, now.Pause.Seconds())
	gauge(s.limit, now.Limit.Seconds())
	to <- prometheus.MustNewConstMetric(s.hooks, prometheus.CounterValue, float64(now.HookFailures))
}
