package announce

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Queues of a socket that is being repaired, and the window that is set then: TCP_RECV_QUEUE, TCP_SEND_QUEUE and struct
// tcp_repair_window in include/uapi/linux/tcp.h.
const (
	receiveQueue = 1
	sendQueue    = 2

	// window is for either direction. What is said on the connection is far less, but the far end must be able to answer.
	window = 1<<16 - 1
)

// Call is data that was sent on a connection of the dead side. Our kernel has that connection, as if it had been its own:
// what the far end acknowledges is not answered with a reset before the far end's program has read the data.
type Call struct {
	fd     int
	doubts time.Time // since when the far end is known to have sent something that does not acknowledge the data
}

// StartCall sends data that the remote end takes as the connection's next, if it expects seq and has sent everything up to ack. The
// connection's local address is this host's; a link-local one is on the interface with that index. If there
// is an error, nothing was sent, or the connection was reset. The connection is made with TCP_REPAIR (net/ipv4/tcp.c), which needs CAP_NET_ADMIN.
func (e Ends) StartCall(seq, ack uint32, data []byte, index int) (*Call, error) {
	family := unix.AF_INET
	if e.Local.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := e.carryOn(fd, seq, ack, index); err != nil {
		return nil, errors.Join(err, unix.Close(fd)) // under repair: closed without a packet
	}
	n, err := unix.Write(fd, data)
	if err == nil && n < len(data) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("write", err), unix.Close(fd))
	}
	return &Call{fd: fd}, nil
}

// carryOn makes a new socket an established connection with the given numbers, without a packet.
func (e Ends) carryOn(fd int, seq, ack uint32, index int) error {
	set := func(option, value int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, option, value))
	}
	numbers := []struct{ option, value int }{
		{unix.TCP_REPAIR, unix.TCP_REPAIR_ON},
		{unix.TCP_REPAIR_QUEUE, sendQueue}, {unix.TCP_QUEUE_SEQ, int(int32(seq))},
		{unix.TCP_REPAIR_QUEUE, receiveQueue}, {unix.TCP_QUEUE_SEQ, int(int32(ack))},
	}
	for _, n := range numbers {
		if err := set(n.option, n.value); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, sockaddr(e.Local, index)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Connect(fd, sockaddr(e.Remote, index)); err != nil {
		return os.NewSyscallError("connect", err)
	}
	var w []byte
	for _, v := range []uint32{ack, window, window, window, ack} { // snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup
		w = binary.NativeEndian.AppendUint32(w, v)
	}
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, string(w)); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	// Close resets the connection.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return set(unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP)
}

func sockaddr(a netip.AddrPort, index int) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	s := &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if a.Addr().IsLinkLocalUnicast() {
		s.ZoneId = uint32(index)
	}
	return s
}

// Close ends the connection by a reset.
func (c *Call) Close() error { return unix.Close(c.fd) }

// Times of EndCalls.
const (
	callLook   = 20 * time.Millisecond  // between two looks at the calls
	callDoubts = 100 * time.Millisecond // so long may what the far end sent before the data came be under way
)

// EndCalls ends each connection when its far end has answered or ended it, when the far end lacks something that came before the
// data, and so waits for what nobody will send, or after limit. It returns how many have answered.
func EndCalls(calls []*Call, limit time.Duration) (answered int) {
	deadline := time.Now().Add(limit)
	for len(calls) > 0 {
		fds := make([]unix.PollFd, len(calls))
		for i, c := range calls {
			fds[i] = unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN}
		}
		if _, err := unix.Poll(fds, 0); err != nil && !errors.Is(err, unix.EINTR) {
			deadline = time.Time{}
		}
		now := time.Now()
		open := calls[:0]
		for i, c := range calls {
			if fds[i].Revents == 0 && now.Before(deadline) && !c.outOfStep(now) {
				open = append(open, c)
				continue
			}
			if fds[i].Revents&unix.POLLIN != 0 && fds[i].Revents&unix.POLLERR == 0 {
				answered++
			}
			_ = c.Close() // has no errors of its own
		}
		if calls = open; len(calls) > 0 {
			time.Sleep(callLook)
		}
	}
	return answered
}

// outOfStep says whether the far end has sent something that does not acknowledge the data, and no acknowledgement has followed.
func (c *Call) outOfStep(now time.Time) bool {
	i, err := unix.GetsockoptTCPInfo(c.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	switch {
	case err != nil || i.Unacked == 0 || i.Segs_in == 0:
		c.doubts = time.Time{}
		return false
	case c.doubts.IsZero():
		c.doubts = now
	}
	return now.Sub(c.doubts) >= callDoubts
}
