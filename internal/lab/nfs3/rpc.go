package nfs3

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Numbers of ONC RPC (RFC 5531, 9 and 8.2).
const (
	rpcVersion = 2
	msgCall    = 0
	msgReply   = 1

	replyAccepted = 0
	replyDenied   = 1

	authNone = 0
	authSys  = 1
	maxAuth  = 400 // bytes of a credential or verifier
)

// RPCError is why a call was not carried out: accept_stat or reject_stat (RFC
// 5531, 9).
type RPCError struct {
	Denied bool   // the message itself was denied
	Stat   uint32 // reject_stat if it was, else accept_stat
}

func (e *RPCError) Error() string {
	names := []string{"success", "program unavailable", "program version mismatch", "procedure unavailable", "garbage arguments", "system error"}
	if e.Denied {
		names = []string{"RPC version mismatch", "authentication error"}
	}
	if int(e.Stat) < len(names) {
		return names[e.Stat]
	}
	return fmt.Sprintf("status %d of RPC", e.Stat)
}

// Credential is who calls, by AUTH_SYS (RFC 5531, appendix A).
type Credential struct {
	Machine  string
	UID, GID uint32
}

func (c Credential) encode() []byte {
	var e encoder
	e.uint32(0) // stamp
	e.opaque([]byte(c.Machine))
	e.uint32(c.UID)
	e.uint32(c.GID)
	e.uint32(0) // no further groups
	return e.b
}

// encodeCall returns a whole call message.
func encodeCall(xid, program, procedure uint32, who Credential, args []byte) []byte {
	var e encoder
	for _, v := range []uint32{xid, msgCall, rpcVersion, program, version, procedure, authSys} {
		e.uint32(v)
	}
	e.opaque(who.encode())
	e.uint32(authNone)
	e.opaque(nil)
	return append(e.b, args...)
}

// decodeReply takes the header off a reply message.
func decodeReply(msg []byte) (xid uint32, body []byte, err error) {
	d := &decoder{b: msg}
	xid = d.uint32()
	if kind := d.uint32(); d.err == nil && kind != msgReply {
		d.fail("message of kind %d", kind)
	}
	switch stat := d.uint32(); {
	case d.err != nil:
		return xid, nil, d.err
	case stat == replyDenied:
		why := d.uint32()
		if d.err != nil {
			return xid, nil, d.err
		}
		return xid, nil, &RPCError{Denied: true, Stat: why}
	case stat != replyAccepted:
		d.fail("reply status %d", stat)
		return xid, nil, d.err
	}
	d.uint32() // flavour of the verifier
	d.opaque(maxAuth)
	if stat := d.uint32(); d.err == nil && stat != 0 {
		return xid, nil, &RPCError{Stat: stat}
	}
	return xid, d.b, d.err
}

// Record marking (RFC 5531, 11).
const (
	lastFragment = 1 << 31
	maxRecord    = 2 << 20 // bytes; servers give at most 1 MiB of data at once
	maxFragments = 256
)

// appendRecord appends a message as a record of one fragment.
func appendRecord(b, msg []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, lastFragment|uint32(len(msg)))
	return append(b, msg...)
}

// readRecord reads a record. Its buffer grows with what is received, not with the announced length.
func readRecord(r io.Reader) ([]byte, error) {
	var msg []byte
	for range maxFragments {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		v := binary.BigEndian.Uint32(mark[:])
		n := int64(v &^ lastFragment)
		if n > maxRecord-int64(len(msg)) {
			return nil, fmt.Errorf("%w: a record of more than %d bytes", ErrFormat, maxRecord)
		}
		part, err := io.ReadAll(io.LimitReader(r, n))
		if err != nil {
			return nil, err
		}
		if int64(len(part)) < n {
			return nil, io.ErrUnexpectedEOF
		}
		msg = append(msg, part...)
		if v&lastFragment != 0 {
			return msg, nil
		}
	}
	return nil, fmt.Errorf("%w: a record of more than %d fragments", ErrFormat, maxFragments)
}
