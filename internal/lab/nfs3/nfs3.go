// Package nfs3 is a client of NFS version 3 that shows what a kernel's client
// hides: how a write is made stable, the server's write verifier, and the
// transaction number of each call, so that a call can be sent once more as if its
// reply had been lost.
//
// A call is a [Request], which [Do] sends. Over TCP it is sent again, with the same
// number and from the same port, on each new connection until its reply comes;
// over UDP, each time the retransmission interval has passed.
//
// # Caveats
//
// It is for tests: it has no idea of a cache, of locks or of other versions, and
// its only credential is AUTH_SYS (RFC 5531, appendix A).
package nfs3

import (
	"context"
	"fmt"
)

// Numbers of programs (RFC 1813, 2.1 and 5.1.1) and the port of NFS.
const (
	ProgramNFS   = 100003
	ProgramMount = 100005
	version      = 3 // of both
	Port         = 2049
)

// Request is one call, and how its reply is decoded.
type Request[T any] struct {
	// XID is the number that the call goes by; zero means a new one. For the server, a
	// call with the same number is the same call sent again.
	XID uint32

	program, procedure uint32
	args               []byte
	decode             func(*decoder) T
}

// Do sends a call and waits for its reply. An error is a [Status] if the server
// refused, an [RPCError] if the call itself was refused, ErrFormat if the reply
// makes no sense, or that of the context.
func Do[T any](ctx context.Context, c *Client, r Request[T]) (result T, err error) {
	xid := r.XID
	if xid == 0 {
		xid = c.NextXID()
	}
	body, err := c.call(ctx, xid, r.program, r.procedure, r.args)
	if err != nil {
		return result, fmt.Errorf("call procedure %d of %d: %w", r.procedure, r.program, err)
	}
	result, err = r.result(body)
	if err != nil {
		return result, fmt.Errorf("call procedure %d of %d: %w", r.procedure, r.program, err)
	}
	return result, nil
}

// result decodes what follows the header of a reply: a status, and the result if the
// status is OK. What follows another status (attributes, all of them optional) is
// ignored.
func (r *Request[T]) result(body []byte) (result T, err error) {
	d := &decoder{b: body}
	if r.decode == nil { // NULL has no result, not even a status
		return result, d.end()
	}
	if s := Status(d.uint32()); d.err == nil && s != OK {
		return result, s
	}
	result = r.decode(d)
	return result, d.end()
}

// Status is how a server answers (nfsstat3, RFC 1813, 2.6). MOUNT's statuses
// (mountstat3, 5.1.5) have the same numbers.
type Status uint32

// The statuses that tests ask for by name.
const (
	OK          Status = 0
	ErrPerm     Status = 1
	ErrNoEnt    Status = 2
	ErrIO       Status = 5
	ErrAccess   Status = 13
	ErrExist    Status = 17
	ErrNotDir   Status = 20
	ErrInvalid  Status = 22
	ErrNoSpace  Status = 28
	ErrNotEmpty Status = 66
	ErrStale    Status = 70
	ErrNotSync  Status = 10002
	ErrNotSupp  Status = 10004
	ErrFault    Status = 10006 // NFS3ERR_SERVERFAULT
	ErrJukebox  Status = 10008
)

var statuses = map[Status]string{
	OK: "OK", ErrPerm: "PERM", ErrNoEnt: "NOENT", ErrIO: "IO", ErrAccess: "ACCES", ErrExist: "EXIST",
	ErrNotDir: "NOTDIR", ErrInvalid: "INVAL", ErrNoSpace: "NOSPC", ErrNotEmpty: "NOTEMPTY", ErrStale: "STALE",
	ErrNotSync: "NOT_SYNC", ErrNotSupp: "NOTSUPP", ErrFault: "SERVERFAULT", ErrJukebox: "JUKEBOX",
}

func (s Status) Error() string {
	if name, ok := statuses[s]; ok {
		return "NFS3ERR_" + name
	}
	return fmt.Sprintf("nfsstat3 %d", uint32(s))
}
