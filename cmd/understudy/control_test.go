package main

import (
	"context"
	"testing"
	"time"
)

// TestDownAnswersFirst: a pair goes down once the caller has hung up, and not
// before it has its answer.
func TestDownAnswersFirst(t *testing.T) {
	ended := make(chan struct{})
	c := &control{stopped: true, end: func() { close(ended) }}
	connection, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	if _, err := c.answer(connection, verbDown, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
		t.Error("it goes down while the other side waits for its answer")
	case <-time.After(100 * time.Millisecond):
	}
	hangUp()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it does not go down")
	}
}
