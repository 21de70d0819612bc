// Package events keeps what has become of a pair: each change of its state is a line of
// JSON in a file that outlives the pair and the machine's memory, and may run programs of
// the operator (hooks). Nothing here is ever waited for by a takeover: what cannot be kept
// in time is counted, and the count is kept.
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
	Unprotected Kind = "unprotected" // there is none: a death now would be an outage until there is
	TakingOver  Kind = "taking-over" // the active side was found dead
	TookOver    Kind = "took-over"   // the understudy serves
	Switching   Kind = "switching"   // a switch in good order has begun
	Switched    Kind = "switched"    // the understudy serves
	Failed      Kind = "failed"      // a takeover did not come through: nobody serves
	Held        Kind = "held"        // a side stands still, and is not dead
	Resumed     Kind = "resumed"     // it goes on
	Trouble     Kind = "trouble"     // a side runs, and something of it does not work
	Error       Kind = "error"       // something that was tried failed, and is tried again
	Left        Kind = "left"        // the supervisor ended, and the guests go on
	Down        Kind = "down"        // the pair has ended
)

// Kinds are all of them, in the order of a pair's life.
var Kinds = []Kind{Up, Protected, Unprotected, TakingOver, TookOver, Switching, Switched, Failed, Held, Resumed, Trouble, Error, Left, Down}

// Event is one thing that happened to a pair, and how the pair was then.
type Event struct {
	At         time.Time `json:"time"`
	Kind       Kind      `json:"event"`
	Pair       string    `json:"pair"`
	State      string    `json:"state"`
	Active     string    `json:"active,omitempty"`     // the partition that serves
	Understudy string    `json:"understudy,omitempty"` // empty: none
	Cause      string    `json:"cause,omitempty"`      // of a death, one of package liveness
	Detail     string    `json:"detail,omitempty"`     // for people
	// Takeover is the report of a takeover or a switch, as understudy status --json has it.
	Takeover json.RawMessage `json:"takeover,omitempty"`
	// Dropped is how many events before this one could not be kept in time.
	Dropped int64 `json:"dropped,omitempty"`
}
