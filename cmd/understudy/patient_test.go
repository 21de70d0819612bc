package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestPatient checks that a writer does not wait for a reader that does not read, and that the reader is later told
// what was dropped, at the right place, and even if nothing is written after it.
func TestPatient(t *testing.T) {
	r, w := io.Pipe()
	p := newPatient(w)
	line := strings.Repeat("x", 99) + "\n"
	say := func(lines int) {
		for range lines {
			if n, err := fmt.Fprint(p, line); err != nil || n != len(line) {
				t.Fatalf("%d, %v", n, err)
			}
		}
	}
	say(1)
	for taken := false; !taken; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		taken = p.waiting.Len() == 0
		p.mu.Unlock()
	}
	const lines, room = 3 * maxPatience / 100, maxPatience / 100
	say(lines)
	all := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(r)
		all <- b
	}()
	p.close(time.Minute)
	w.Close()
	got := string(<-all)
	want := strings.Repeat(line, 1+room) + fmt.Sprintf("%d lines are not here: nobody took them\n", lines-room)
	if got != want {
		t.Errorf("%d of %d lines came; the end is %q", strings.Count(got, line), 1+room, got[max(0, len(got)-200):])
	}
}

// TestPatientEnd checks that close waits for a reader that reads, and not long for one that does not.
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
