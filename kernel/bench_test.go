package kernel_test

import (
	"testing"

	"understudy/internal/fixture"
	"understudy/kernel"
)

func BenchmarkFind(b *testing.B) {
	mem := openImage(b, fixture.Basic)
	for b.Loop() {
		if _, err := kernel.Find(mem); err != nil {
			b.Fatal(err)
		}
	}
}
