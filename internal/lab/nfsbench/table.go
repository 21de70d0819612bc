package nfsbench

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/lab/demo"
)

// Metric summarizes one column of one row.
type Metric struct {
	Row    string `json:"row"`
	Metric string `json:"metric"`
	demo.Spread
}

// columns are what is measured of a run: times in ms, and numbers.
var columns = []struct {
	name string
	of   func(*Report) float64
}{
	{"ping gap", func(r *Report) float64 { return r.PingGapMS }},
	{"v3/TCP stall", func(r *Report) float64 { return r.stall(streamV3) }},
	{"v3/UDP stall", func(r *Report) float64 { return r.stall(streamUDP) }},
	{"v4.2 stall", func(r *Report) float64 { return r.stall(streamV42) }},
	{"client errors", func(r *Report) float64 { return float64(len(r.Errors)) }},
	{"bytes lost", func(r *Report) float64 { return float64(r.BytesLost) }},
}

// Metrics summarizes runs, row by row in the order of their first run.
func Metrics(runs []*Report) []Metric {
	var rows []string
	for _, r := range runs {
		if !slices.Contains(rows, r.Row) {
			rows = append(rows, r.Row)
		}
	}
	metrics := []Metric{}
	for _, row := range rows {
		for _, c := range columns {
			var values []float64
			for _, r := range runs {
				if r.Row == row && r.Broken == "" {
					values = append(values, c.of(r))
				}
			}
			metrics = append(metrics, Metric{row, c.name, demo.NewSpread(values)})
		}
	}
	return metrics
}

// WriteTable prints metrics as a table: medians, and the range in brackets.
func WriteTable(w io.Writer, metrics []Metric) error {
	var b strings.Builder
	b.WriteString("| |")
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", c.name)
	}
	b.WriteString(" n |\n|---|" + strings.Repeat("---|", len(columns)+1))
	row := ""
	for i, m := range metrics {
		if m.Row != row {
			row = m.Row
			fmt.Fprintf(&b, "\n| %s |", row)
		}
		fmt.Fprintf(&b, " %s |", cell(m))
		if i+1 == len(metrics) || metrics[i+1].Row != row {
			fmt.Fprintf(&b, " %d |", m.N)
		}
	}
	_, err := io.WriteString(w, b.String()+"\n")
	return err
}

func cell(m Metric) string {
	unit := ""
	if strings.HasSuffix(m.Metric, "stall") || strings.HasSuffix(m.Metric, "gap") {
		unit = " ms"
	}
	if m.Min == m.Max {
		return fmt.Sprintf("%.0f%s", m.Median, unit)
	}
	return fmt.Sprintf("%.0f%s (%.0f to %.0f)", m.Median, unit, m.Min, m.Max)
}
