package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestPatient: who says something does not wait for one who does not listen; what was dropped is told when he does.
func TestPatient(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := newPatient(w)
	line := strings.Repeat("x", 99) + "\n"
	const lines = 3 * maxPatience / 100
	for range lines {
		if n, err := fmt.Fprint(p, line); err != nil || n != len(line) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	all := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(r)
		all <- b
	}()
	for empty := false; !empty; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		empty = p.waiting.Len() == 0
		p.mu.Unlock()
	}
	fmt.Fprintln(p, "the last")
	p.close(time.Minute)
	w.Close()
	got := string(<-all)
	came := strings.Count(got, line)
	if want := fmt.Sprintf("%d lines are not here: nobody took them\nthe last\n", lines-came); came == 0 || came == lines || !strings.HasSuffix(got, want) {
		t.Errorf("%d of %d lines came; the end is %q", came, lines, got[max(0, len(got)-200):])
	}
}

// TestPatientEnd: the end waits for one who listens, and not long for one who does not.
func TestPatientEnd(t *testing.T) {
	var b bytes.Buffer
	p := newPatient(&b)
	fmt.Fprintln(p, "one")
	fmt.Fprintln(p, "two")
	p.close(time.Minute)
	if b.String() != "one\ntwo\n" {
		t.Errorf("%q", b.String())
	}
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe() // nobody reads
		p := newPatient(w)
		fmt.Fprintln(p, "one")
		start := time.Now()
		p.close(time.Second)
		if took := time.Since(start); took != time.Second {
			t.Errorf("it took %v", took)
		}
		r.Close()
	})
}
