package main

import (
	"encoding/json"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.2", Main: debug.Module{Path: "example.com/a"}, Deps: []*debug.Module{
		{Path: "example.com/b", Version: "v1.0.0"},
		{Path: "example.com/c", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/d", Version: "v2.0.0"}},
	}}
	var b strings.Builder
	if err := write(&b, info, "v3"); err != nil {
		t.Fatal(err)
	}
	var d document
	if err := json.Unmarshal([]byte(b.String()), &d); err != nil {
		t.Fatal(err)
	}
	got := []string{d.Metadata.Component.PURL}
	for _, c := range d.Components {
		got = append(got, c.PURL)
	}
	want := []string{"pkg:golang/example.com/a@v3", "pkg:golang/std@go1.2", "pkg:golang/example.com/b@v1.0.0", "pkg:golang/example.com/d@v2.0.0"}
	if !slices.Equal(got, want) || d.Format != "CycloneDX" {
		t.Errorf("%s %v", d.Format, got)
	}
}
