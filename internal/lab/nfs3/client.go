package nfs3

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how a client reaches its server.
type Options struct {
	Network string // tcp or udp
	Server  netip.AddrPort
	// LocalPort is the port to call from. A server tells clients apart by it, so it stays
	// the same for all connections. Zero means one below 1024, which exports demand that
	// are not insecure; that takes privilege.
	LocalPort uint16
	// Retransmit is how long to wait for a reply before a call is sent again: over UDP
	// and, if it is not zero, over the same connection of TCP. Zero means 100 ms for UDP.
	Retransmit time.Duration
	// Redial is how long to wait between attempts to connect; zero means 20 ms. One
	// attempt may take at most DialLimit; zero means 200 ms.
	Redial, DialLimit time.Duration
	Who               Credential
	// In runs the function that makes a socket, in a network namespace for instance; nil means here.
	In func(func() error) error
	// OnConnect is called for each connection, before calls go over it.
	OnConnect func()
}

// Client speaks to one port of a server.
type Client struct {
	o     Options
	local uint16
	stop  context.CancelFunc
	done  chan struct{}

	mu      sync.Mutex
	conn    net.Conn // nil while there is none
	waiting map[uint32]*waiter
	order   []uint32 // of waiting, as sent
	xid     uint32
	closed  bool
}

// waiter is a call that has no reply yet.
type waiter struct {
	msg   []byte
	reply chan reply // holds one
}

type reply struct {
	body []byte
	err  error
}

// ErrClosed is the error of a call that is interrupted by Close.
var ErrClosed = errors.New("client is closed")

// New returns a client, which connects in the background: while a server is down, its
// replies take long.
func New(o Options) (*Client, error) {
	if o.Network != "tcp" && o.Network != "udp" {
		return nil, fmt.Errorf("network %q: tcp or udp", o.Network)
	}
	if o.Retransmit == 0 && o.Network == "udp" {
		o.Retransmit = 100 * time.Millisecond
	}
	if o.Redial == 0 {
		o.Redial = 20 * time.Millisecond
	}
	if o.DialLimit == 0 {
		o.DialLimit = 200 * time.Millisecond
	}
	if o.In == nil {
		o.In = func(f func() error) error { return f() }
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{
		o: o, local: o.LocalPort, stop: stop, done: make(chan struct{}),
		waiting: make(map[uint32]*waiter), xid: uint32(time.Now().UnixNano()),
	}
	if c.local == 0 {
		if err := c.choosePort(); err != nil {
			stop()
			return nil, err
		}
	}
	go c.run(ctx)
	return c, nil
}

// choosePort finds a port below 1024 that is free now.
func (c *Client) choosePort() error {
	var err error
	for port := uint16(1023); port >= 600; port-- {
		c.local = port
		var conn net.PacketConn
		var l net.Listener
		err = c.o.In(func() (err error) {
			local := netip.AddrPortFrom(c.unspecified(), port).String()
			if c.o.Network == "udp" {
				conn, err = net.ListenPacket("udp", local)
			} else {
				l, err = net.Listen("tcp", local)
			}
			return err
		})
		switch {
		case err == nil && conn != nil:
			return conn.Close()
		case err == nil:
			return l.Close()
		case !errors.Is(err, unix.EADDRINUSE):
			return fmt.Errorf("find a port below 1024: %w", err)
		}
	}
	return fmt.Errorf("find a port below 1024: %w", err)
}

func (c *Client) unspecified() netip.Addr {
	if c.o.Server.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// NextXID returns a number that no call has had yet.
func (c *Client) NextXID() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.xid++; c.xid == 0 {
		c.xid++
	}
	return c.xid
}

// call sends one call and returns the body of its reply.
func (c *Client) call(ctx context.Context, xid, program, procedure uint32, args []byte) ([]byte, error) {
	w := &waiter{msg: encodeCall(xid, program, procedure, c.o.Who, args), reply: make(chan reply, 1)}
	if err := c.register(xid, w); err != nil {
		return nil, err
	}
	defer c.forget(xid)
	var again <-chan time.Time
	if c.o.Retransmit > 0 {
		t := time.NewTicker(c.o.Retransmit)
		defer t.Stop()
		again = t.C
	}
	for {
		select {
		case r := <-w.reply:
			return r.body, r.err
		case <-again:
			c.resend(w)
		case <-c.done:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (c *Client) register(xid uint32, w *waiter) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return ErrClosed
	case c.waiting[xid] != nil:
		return fmt.Errorf("call %#x still waits for a reply", xid)
	}
	c.waiting[xid] = w
	c.order = append(c.order, xid)
	c.send(w)
	return nil
}

func (c *Client) forget(xid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, xid)
	for i, x := range c.order {
		if x == xid {
			c.order = append(c.order[:i], c.order[i+1:]...)
			return
		}
	}
}

func (c *Client) resend(w *waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.send(w)
}

// send writes a message if there is a connection. If that fails, the message is sent
// again on the next connection, or after the next interval. A connection that takes
// nothing for long is closed; the reader then sees its end.
func (c *Client) send(w *waiter) {
	if c.conn == nil {
		return
	}
	if c.o.Network == "udp" {
		_, _ = c.conn.Write(w.msg) // refused, unreachable: not now
		return
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeLimit))
	if _, err := c.conn.Write(appendRecord(nil, w.msg)); err != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// writeLimit is how long a full send buffer holds up a writer.
const writeLimit = time.Minute

// run keeps a connection, and reads replies from it.
func (c *Client) run(ctx context.Context) {
	defer close(c.done)
	for ctx.Err() == nil {
		conn, err := c.dial(ctx)
		if err == nil {
			if c.o.OnConnect != nil {
				c.o.OnConnect()
			}
			undo := context.AfterFunc(ctx, func() { conn.Close() })
			if c.adopt(conn) {
				c.read(conn)
			}
			undo()
			c.drop(conn)
		}
		if err == nil && c.o.Network == "tcp" {
			continue // at once: the old connection was reset
		}
		select {
		case <-time.After(c.o.Redial):
		case <-ctx.Done():
		}
	}
}

// dial connects from the client's port, which an older connection may have used.
// A connection ends with a reset, so that the port is free for the next one.
func (c *Client) dial(ctx context.Context) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.DialLimit)
	defer cancel()
	d := net.Dialer{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		})
		return errors.Join(err, set)
	}}
	local := netip.AddrPortFrom(c.unspecified(), c.local)
	if c.o.Network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	} else {
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	}
	err = c.o.In(func() (err error) {
		conn, err = d.DialContext(ctx, c.o.Network, c.o.Server.String())
		return err
	})
	if t, ok := conn.(*net.TCPConn); ok && err == nil {
		err = t.SetLinger(0)
	}
	return conn, err
}

// adopt makes a connection the current one, and sends all calls that wait over it.
func (c *Client) adopt(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.conn = conn
	for _, xid := range c.order {
		if w := c.waiting[xid]; w != nil {
			c.send(w)
		}
	}
	return true
}

func (c *Client) drop(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		c.conn = nil
	}
	conn.Close()
}

// read hands replies to the calls that wait for them, until the connection ends.
func (c *Client) read(conn net.Conn) {
	in := bufio.NewReader(conn)
	datagram := make([]byte, 1<<16)
	for {
		var msg []byte
		var err error
		if c.o.Network == "tcp" {
			msg, err = readRecord(in)
		} else {
			var n int
			n, err = conn.Read(datagram)
			msg = append([]byte(nil), datagram[:n]...)
			if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) {
				continue // an ICMP answer to what was sent: nobody is there now
			}
		}
		if err != nil {
			return
		}
		c.deliver(msg)
	}
}

// deliver hands a reply to the call that waits for it. It drops others, such as a second reply to one call.
func (c *Client) deliver(msg []byte) {
	xid, body, err := decodeReply(msg)
	if len(msg) < 4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.waiting[xid]; w != nil {
		select {
		case w.reply <- reply{body, err}:
		default: // there is one already
		}
	}
}

// Close ends the client and all calls that wait for a reply.
func (c *Client) Close() error {
	c.stop() // first: a writer may hold the lock until its connection ends
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	<-c.done
	return nil
}
