package sockets

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// Reason says why an entry in memory is not taken.
type Reason int

// The reasons for a refusal.
const (
	Unreadable     Reason = iota + 1 // its memory is absent, or its address is wrong
	BadTable                         // the hash table itself is implausible
	BadChain                         // the entry does not point back to the one before it, or was met before
	BadHash                          // the entry does not belong in this chain, by what it says
	BadState                         // a state that no entry of this table has
	BadProtocol                      // the entry is of another protocol or address family
	BadPort                          // a port is zero, or its two copies differ
	BadAddress                       // an address is unspecified
	BadNamespace                     // the network namespace does not exist
	BadDevice                        // the network device is implausible
	BadLinkAddress                   // the two copies of the link-layer address differ, or it was being changed
	TooMany                          // so much of the table was refused that the rest was not looked at
)

var reasonNames = map[Reason]string{
	Unreadable:     "unreadable",
	BadTable:       "implausible table",
	BadChain:       "damaged chain",
	BadHash:        "entry of another chain",
	BadState:       "implausible state",
	BadProtocol:    "entry of another protocol",
	BadPort:        "implausible port",
	BadAddress:     "implausible address",
	BadNamespace:   "unknown network namespace",
	BadDevice:      "implausible device",
	BadLinkAddress: "implausible link-layer address",
	TooMany:        "too much is damaged",
}

func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason %d", int(r))
}

// MarshalText makes reasons readable in reports.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Refusal is an entry of a table that is not taken, or also the rest of its chain. It
// is an error, so that walks can yield it in its place.
type Refusal struct {
	Table  string    // "tcp", "arp" or "nd"
	Bucket int       // of the hash table; -1 if the refusal is about the whole table
	Addr   addr.Virt // of the entry, or of the table
	Reason
	Cause error // more about it; may be nil
}

func (r *Refusal) Error() string {
	s := fmt.Sprintf("refuse %s table at %v", r.Table, r.Addr)
	if r.Bucket >= 0 {
		s = fmt.Sprintf("refuse entry at %v of %s bucket %d", r.Addr, r.Table, r.Bucket)
	}
	s += ": " + r.Reason.String()
	if r.Cause != nil {
		s += ": " + r.Cause.Error()
	}
	return s
}

func (r *Refusal) Unwrap() error { return r.Cause }

// maxRefusals bounds the refusals for one table. Beyond that it is no table.
const maxRefusals = 1000

// tally is the state of a walk over one table.
type tally struct {
	table   string
	at      addr.Virt
	refused int
}

// refuse makes a refusal; the one that reaches the bound says that there are too many.
func (t *tally) refuse(bucket int, at addr.Virt, why Reason, cause error) *Refusal {
	if t.refused++; t.refused >= maxRefusals {
		return &Refusal{Table: t.table, Bucket: -1, Addr: t.at, Reason: TooMany, Cause: cause}
	}
	return &Refusal{Table: t.table, Bucket: bucket, Addr: at, Reason: why, Cause: cause}
}

func (t *tally) full() bool { return t.refused >= maxRefusals }

// wrong is why an entry does not check out.
type wrong struct {
	Reason
	cause error
}

func (w wrong) Error() string { return w.String() + ": " + w.cause.Error() }

func (w wrong) Unwrap() error { return w.cause }

func bad(why Reason, format string, args ...any) error {
	return wrong{why, fmt.Errorf(format, args...)}
}

// refuseFor makes a refusal from an error of bad, or from that of a failed read.
func (t *tally) refuseFor(bucket int, at addr.Virt, err error) *Refusal {
	var w wrong
	if errors.As(err, &w) {
		return t.refuse(bucket, at, w.Reason, w.cause)
	}
	return t.refuse(bucket, at, Unreadable, err)
}
