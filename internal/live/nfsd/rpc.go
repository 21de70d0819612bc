package nfsd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// Numbers of ONC RPC (RFC 5531) and NFS (RFC 1813).
const (
	rpcCall     = 0
	rpcReply    = 1
	rpcVersion  = 2
	lastRecord  = 1 << 31 // a record's only fragment, RFC 5531, 11
	nfsProgram  = 100003
	nfsVersion3 = 3

	procNull    = 0
	procGetAttr = 1
)

// callLimit is how long the server may take to answer us, and maxReply how much it
// may say: both calls have short answers.
const (
	callLimit = 5 * time.Second
	maxReply  = 256 // bytes
)

// ping calls the server's NULL procedure over TCP, which does nothing but answer.
func ping(ctx context.Context) error { return ask(ctx, procNull, nil) }

// probe asks for the attributes of a file that cannot exist. Before it can say so, the
// server must find out from mountd whether the client may ask at all.
func probe(ctx context.Context) error {
	return ask(ctx, procGetAttr, binary.BigEndian.AppendUint32(nil, 0)) // a handle of no bytes
}

func ask(ctx context.Context, procedure uint32, arguments []byte) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(Port)))
	if err != nil {
		return fmt.Errorf("reach nfsd: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callLimit)); err != nil {
		return err
	}
	if err := call(conn, 1, procedure, arguments); err != nil {
		return fmt.Errorf("call nfsd: %w", err)
	}
	return nil
}

// callRecord is a call as the only fragment of a record.
func callRecord(xid, program, version, procedure uint32, arguments []byte) []byte {
	// xid, call, RPC version, program, version, procedure; then the credential:
	// flavour AUTH_SYS with stamp, empty machine name, user, group, no more groups;
	// then no verifier.
	head := words(nil, xid, rpcCall, rpcVersion, program, version, procedure, authSys, 20, 0, 0, 0, 0, 0, 0, 0)
	out := words(nil, uint32(lastRecord|len(head)+len(arguments)))
	return append(append(out, head...), arguments...)
}

// words appends numbers (RFC 4506, 4.1).
func words(b []byte, words ...uint32) []byte {
	for _, w := range words {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	return b
}

// call makes a call over a stream and accepts any answer of the server to it: the
// header of the reply must be right, but the reply may be a refusal.
func call(rw io.ReadWriter, xid, procedure uint32, arguments []byte) error {
	if _, err := rw.Write(callRecord(xid, nfsProgram, nfsVersion3, procedure, arguments)); err != nil {
		return err
	}
	var mark [4]byte
	if _, err := io.ReadFull(rw, mark[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(mark[:]) &^ lastRecord
	if n < 12 || n > maxReply {
		return fmt.Errorf("an answer of invalid length: %d bytes", n)
	}
	reply := make([]byte, n)
	if _, err := io.ReadFull(rw, reply); err != nil {
		return err
	}
	for i, want := range []uint32{xid, rpcReply} {
		if got := binary.BigEndian.Uint32(reply[4*i:]); got != want {
			return fmt.Errorf("word %d of the answer is %#x, not %#x", i, got, want)
		}
	}
	return nil
}
