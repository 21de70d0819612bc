package nfsd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Backchannel is the channel on which a server called back a client of NFSv4.1 or later (RFC 8881, 2.10.3.1).
type Backchannel struct {
	Local, Remote netip.AddrPort // the ends of the client's connection that it uses
	Session       [16]byte       // sessionid4
	Sequence      uint32         // of the next call in its slot 0
	Program       uint32         // RPC program that the client chose for calls to it
	Minor         uint32         // version of NFSv4: 1 or 2
	Slots         uint32         // slots that the client has in the session for its own calls
	// Idle says that no thread was writing to the connection, so what was written to it ends with a whole record.
	Idle bool
}

// Backchannels yields the backchannels of the server's clients, in the order of Clients; clients without one are left out.
// An error may be about one client only: others then follow.
func Backchannels(k *kernel.Kernel) iter.Seq2[Backchannel, error] {
	return func(yield func(Backchannel, error) bool) {
		w, err := newWalk(k)
		if err == nil {
			err = w.backchannels(yield)
		}
		if err = unlessEnough(err); err != nil {
			yield(Backchannel{}, fmt.Errorf("backchannels of nfsd: %w", err))
		}
	}
}

// backchannelLayout is what is read of struct nfs4_client, nfsd4_session and svc_xprt (fs/nfsd/state.h,
// include/linux/sunrpc/svc_xprt.h).
type backchannelLayout struct {
	client, session, transport                 *kernel.Layout
	minor, current, transportOf                kernel.Field
	owner, id, sequence, program, slots        kernel.Field
	local, localSize, remote, remoteSize, held kernel.Field
}

func (w *walk) backchannelLayout() (*backchannelLayout, error) {
	c, s, t := w.types.Layout("nfs4_client"), w.types.Layout("nfsd4_session"), w.shared("svc_xprt")
	l := &backchannelLayout{
		client: c, session: s, transport: t,
		minor: c.Field("cl_minorversion", 4), current: c.Field("cl_cb_session", 8), transportOf: c.Field("cl_cb_conn.cb_xprt", 8),
		owner: s.Field("se_client", 8), id: s.Field("se_sessionid.data", 16), program: s.Field("se_cb_prog", 4),
		sequence: s.Field("se_cb_seq_nr"), // one number, or since 6.13 one for each slot
		slots:    s.Field("se_fchannel.maxreqs", 4),
		local:    t.Field("xpt_local", 128), localSize: t.Field("xpt_locallen", 8),
		remote: t.Field("xpt_remote", 128), remoteSize: t.Field("xpt_remotelen", 8),
		held: t.Field("xpt_mutex.owner.counter", 8),
	}
	err := errors.Join(c.Err(), s.Err(), t.Err())
	if err == nil && l.sequence.Size < 4 {
		err = fmt.Errorf("struct nfsd4_session: se_cb_seq_nr has %d bytes", l.sequence.Size)
	}
	return l, err
}

func (w *walk) backchannels(yield func(Backchannel, error) bool) error {
	n := w.types.Layout("nfsd_net")
	l, err := w.backchannelLayout()
	if err != nil {
		return err
	}
	net, server, err := w.started(n)
	if err != nil || server == nil {
		return err
	}
	return w.each(n, l.client, net, func(at addr.Virt, b []byte) error {
		session, transport := l.current.Pointer(b), l.transportOf.Pointer(b)
		if l.minor.Uint(b) == 0 || session == 0 || transport == 0 {
			return nil // it has none
		}
		c, err := w.backchannel(l, at, session, transport)
		if c.Minor = uint32(l.minor.Uint(b)); err != nil {
			c, err = Backchannel{}, fmt.Errorf("backchannel of the client at %v: %w", at, err)
		}
		if !yield(c, err) {
			return errEnough
		}
		return nil
	})
}

// backchannel reads the backchannel of a client: its session, which must belong to the client, and its transport.
func (w *walk) backchannel(l *backchannelLayout, client, session, transport addr.Virt) (c Backchannel, err error) {
	b, err := w.k.Bytes(session, l.session.Size)
	if err != nil {
		return c, err
	}
	if owner := l.owner.Pointer(b); owner != client {
		return c, fmt.Errorf("its session at %v is that of the client at %v", session, owner)
	}
	c.Session = [16]byte(l.id.Bytes(b))
	c.Program, c.Slots = uint32(l.program.Uint(b)), uint32(l.slots.Uint(b))
	c.Sequence = binary.LittleEndian.Uint32(l.sequence.Bytes(b))
	if b, err = w.k.Bytes(transport, l.transport.Size); err != nil {
		return c, err
	}
	c.Idle = l.held.Uint(b) == 0
	if c.Local, err = address(l.local.Bytes(b), l.localSize.Uint(b)); err != nil {
		return c, err
	}
	c.Remote, err = address(l.remote.Bytes(b), l.remoteSize.Uint(b))
	return c, err
}

// address reads a struct sockaddr_in or sockaddr_in6 (include/uapi/linux/in.h, in6.h) of size bytes.
func address(b []byte, size uint64) (netip.AddrPort, error) {
	const inet, inet6 = 2, 10 // AF_INET, AF_INET6: include/linux/socket.h
	port := binary.BigEndian.Uint16(b[2:])
	switch family := binary.LittleEndian.Uint16(b); {
	case family == inet && size >= 16:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), port), nil
	case family == inet6 && size >= 28:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:])).Unmap(), port), nil
	default:
		return netip.AddrPort{}, fmt.Errorf("an address of family %d, of %d bytes", family, size)
	}
}
