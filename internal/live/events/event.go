// Package events records what happens to a pair: each change of its state is a line of JSON
// in a file that outlives the pair and the machine's memory, and may run programs of the
// operator (hooks). A takeover never waits for anything here: events that cannot be recorded
// in time are counted, and the count is recorded.
package events

import (
	"encoding/json"
	"time"
)

// Kind is what happened.
type Kind string

// The kinds of events, as files and hooks name them.
const (
	Up          Kind = "up"          // a supervisor has brought the pair up, or taken charge of it again
	Protected   Kind = "protected"   // there is an understudy that has rehearsed
	Unprotected Kind = "unprotected" // there is no such understudy: a death now would be an outage until there is one
	TakingOver  Kind = "taking-over" // the active side was found dead
	TookOver    Kind = "took-over"   // the understudy serves
	Switching   Kind = "switching"   // a switch in good order has begun
	Switched    Kind = "switched"    // the understudy serves
	Failed      Kind = "failed"      // a takeover did not succeed: neither side serves
	Held        Kind = "held"        // a side does not run, but is not dead
	Resumed     Kind = "resumed"     // the side runs again
	Trouble     Kind = "trouble"     // a side runs, but something in it does not work
	Error       Kind = "error"       // an attempt at something failed, and is made again
	Left        Kind = "left"        // the supervisor ended, and the guests keep running
	Down        Kind = "down"        // the pair has ended
)

// Kinds are all kinds of events, in the order of a pair's life.
var Kinds = []Kind{Up, Protected, Unprotected, TakingOver, TookOver, Switching, Switched, Failed, Held, Resumed, Trouble, Error, Left, Down}

// Event is one thing that happened to a pair, with the pair's state at that time.
type Event struct {
	At         time.Time `json:"time"`
	Kind       Kind      `json:"event"`
	Pair       string    `json:"pair"`
	State      string    `json:"state"`
	Active     string    `json:"active,omitempty"`     // the partition that serves
	Understudy string    `json:"understudy,omitempty"` // empty if there is none
	Cause      string    `json:"cause,omitempty"`      // of a death, one of those of package liveness
	Detail     string    `json:"detail,omitempty"`     // for people
	// Takeover is the report of a takeover or a switch, as understudy status --json has it.
	Takeover json.RawMessage `json:"takeover,omitempty"`
	// Dropped is how many events before this one could not be recorded in time.
	Dropped int64 `json:"dropped,omitempty"`
}
