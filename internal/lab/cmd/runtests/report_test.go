package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// said is what go test -json says of a package with a test that passes, one that is
// skipped and one that fails, and of a package that panics.
const said = `{"Action":"start","Package":"understudy.dev/understudy/dead/ram"}
{"Action":"output","Package":"understudy.dev/understudy/dead/ram","Test":"TestA","Output":"    a_test.go:7: progress: make an image\n"}
{"Action":"pass","Package":"understudy.dev/understudy/dead/ram","Test":"TestA","Elapsed":7}
{"Action":"output","Package":"understudy.dev/understudy/dead/ram","Test":"TestB","Output":"    b_test.go:7: kernel x: make test-full runs it\n"}
{"Action":"output","Package":"understudy.dev/understudy/dead/ram","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"understudy.dev/understudy/dead/ram","Test":"TestB"}
{"Action":"output","Package":"understudy.dev/understudy/dead/ram","Test":"TestC","Output":"    c_test.go:7: one byte is wrong\n"}
{"Action":"fail","Package":"understudy.dev/understudy/dead/ram","Test":"TestC"}
{"Action":"fail","Package":"understudy.dev/understudy/dead/ram"}
{"Action":"output","Package":"understudy.dev/understudy/dead/addr","Test":"TestD","Output":"panic: out of range\n"}
{"Action":"fail","Package":"understudy.dev/understudy/dead/addr"}
`

func TestReport(t *testing.T) {
	var out strings.Builder
	r := newReport(&out, time.Now())
	if err := r.read(strings.NewReader(said)); err != nil {
		t.Fatal(err)
	}
	r.end()
	if r.passed != 1 || r.skipped != 1 || r.failed != 1 || r.good() {
		t.Errorf("%d passed, %d skipped, %d failed, good %v", r.passed, r.skipped, r.failed, r.good())
	}
	if !slices.Equal(r.failures, []string{"dead/ram TestC"}) || !slices.Equal(r.broken, []string{"dead/addr"}) {
		t.Errorf("failed: %q, and without a test: %q", r.failures, r.broken)
	}
	for _, want := range []string{
		"dead/ram TestA: make an image\n", "TestA: passed in 7 s\n", "one byte is wrong\n", "panic: out of range\n", "1  kernel x: make test-full runs it\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, &out)
		}
	}
}
