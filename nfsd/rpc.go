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
	nullReply   = 24 // bytes: xid, reply, accepted, empty verifier, success
	nfsVersion3 = 3
)

// ping calls the server's NULL procedure over TCP, which does nothing but answer.
func ping(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(Port)))
	if err != nil {
		return fmt.Errorf("reach nfsd: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(pingLimit)); err != nil {
		return err
	}
	if err := callNull(conn, 1); err != nil {
		return fmt.Errorf("call nfsd: %w", err)
	}
	return nil
}

const pingLimit = 5 * time.Second

func callNull(rw io.ReadWriter, xid uint32) error {
	// Call header: xid, call, RPC version, program, version, procedure 0, and no
	// credential nor verifier: flavour AUTH_NONE and length 0, twice.
	var call []byte
	for _, v := range []uint32{lastRecord | 40, xid, rpcCall, rpcVersion, nfsProgram, nfsVersion3, 0, 0, 0, 0, 0} {
		call = binary.BigEndian.AppendUint32(call, v)
	}
	if _, err := rw.Write(call); err != nil {
		return err
	}
	reply := make([]byte, 4+nullReply)
	if _, err := io.ReadFull(rw, reply); err != nil {
		return err
	}
	for i, want := range []uint32{lastRecord | nullReply, xid, rpcReply, 0, 0, 0, 0} {
		if got := binary.BigEndian.Uint32(reply[4*i:]); got != want {
			return fmt.Errorf("word %d of the answer is %#x, not %#x", i, got, want)
		}
	}
	return nil
}
