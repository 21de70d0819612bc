package journal

import (
	"testing"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// TestConfigurations checks that every field is found in the structures of real kernels of other
// configurations, as a compiler lays them out.
func TestConfigurations(t *testing.T) {
	for _, name := range fixture.Layouts {
		t.Run(name, func(t *testing.T) {
			m := kerneltest.New(t)
			m.Finish(fixture.Types(t, name)...)
			k, err := kernel.Find(m)
			if err != nil {
				t.Fatal(err)
			}
			c, err := pagecache.Open(k)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := newLayout(c); err != nil {
				t.Error(err)
			}
			if _, err := newTaskLayout(c); err != nil {
				t.Error(err)
			}
		})
	}
}
