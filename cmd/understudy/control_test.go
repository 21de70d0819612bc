package main

import (
	"context"
	"strings"
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

// TestOneAtATime: a pair that is being stopped, taken over or switched is let alone by whatever
// else would stop it or leave it.
func TestOneAtATime(t *testing.T) {
	tests := []struct {
		name string
		busy *control
		verb string
		want string
	}{
		{"down while it goes down", &control{stopping: true}, verbDown, "goes down already"},
		{"leave while it goes down", &control{stopping: true}, verbLeave, "goes down already"},
		{"leave when it has stopped", &control{stopped: true}, verbLeave, "goes down already"},
		{"switch while it goes down", &control{stopping: true}, verbSwitch, "goes down already"},
		{"switch when it has stopped", &control{stopped: true}, verbSwitch, "goes down already"},
		{"down in a takeover", &control{status: status{State: "taking over"}}, verbDown, "a takeover is under way"},
		{"down in a switch", &control{status: status{State: "switching"}}, verbDown, "a switch is under way"},
		{"down before a switch", &control{order: &order{}}, verbDown, "a switch is under way"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.busy.status.State == "" {
				tt.busy.status.State = "protected"
			}
			tt.busy.end = func() { t.Error("it ends") }
			_, err := tt.busy.answer(t.Context(), tt.verb, []byte("{}"))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want: %s", err, tt.want)
			}
		})
	}
}
