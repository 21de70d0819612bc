package main

import (
	"os"
	"path/filepath"
	"testing"

	"understudy/internal/fixture"
)

func BenchmarkZZList(b *testing.B) {
	image := crashImage(b, fixture.Many)
	for b.Loop() {
		if got := command(b, "salvage", "list", image.RAM); got.err != nil {
			b.Fatal(got.err)
		}
	}
}

func BenchmarkZZExtract(b *testing.B) {
	image := crashImage(b, fixture.Many)
	dir := filepath.Join("/dev/shm", "zzx")
	for b.Loop() {
		if got := command(b, "salvage", "extract", image.RAM, "-o", dir); got.err != nil {
			b.Fatal(got.err)
		}
		os.RemoveAll(dir)
	}
}
