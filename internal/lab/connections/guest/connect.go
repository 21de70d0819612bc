//go:build linux

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// connectAll makes all connections.
func (b *board) connectAll(pairs int) error {
	at := netip.MustParseAddr
	var far netip.Addr
	var nearIndex, farIndex uint32
	err := errors.Join(
		b.home.do(func() (err error) { _, nearIndex, err = linkLocal("near"); return err }),
		b.away.do(func() (err error) { far, farIndex, err = linkLocal("far"); return err }),
	)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return b.pairs(plan{kind: "plain", to: at("127.0.0.1"), n: pairs}) },
		func() error { return b.pairs(plan{kind: "plain6", to: at("::1"), n: pairs / 10}) },
		func() error { return b.pairs(plan{kind: "dummy", to: at("10.9.0.1"), n: 20}) },
		func() error { return b.pairs(plan{kind: "dummy6", to: at("fd09::1"), n: 20}) },
		func() error {
			return b.pairs(plan{kind: "mapped", to: at("127.0.0.1"), n: 50, client6: true, server6: true})
		},
		func() error { return b.pairs(plan{kind: "half mapped", to: at("127.0.0.1"), n: 50, server6: true}) },
		func() error { return b.pairs(plan{kind: "cable", to: at("10.8.0.2"), n: 10, server: b.away}) },
		func() error { return b.pairs(plan{kind: "cable6", to: at("fd08::2"), n: 10, server: b.away}) },
		func() error {
			return b.pairs(plan{kind: "link-local", to: far, n: 3, server: b.away, scopes: [2]uint32{nearIndex, farIndex}})
		},
		func() error {
			return b.pairs(plan{kind: "away", to: at("127.0.0.1"), n: 30, client: b.away, server: b.away})
		},
		func() error {
			return b.pairs(plan{kind: "away6", to: at("::1"), n: 30, client: b.away, server: b.away})
		},
		func() error {
			return b.pairs(plan{kind: "own", to: at("127.0.0.1"), n: 60, client: b.own, server: b.own})
		},
		func() error { return b.pairs(plan{kind: "own6", to: at("::1"), n: 20, client: b.own, server: b.own}) },
		func() error { return b.pairs(plan{kind: "full", to: at("127.0.0.1"), n: 6, then: fill}) },
		func() error { return b.pairs(plan{kind: "half closed", to: at("127.0.0.1"), n: 6, then: halfClose}) },
		func() error { return b.pairs(plan{kind: "half closed", to: at("::1"), n: 6, then: halfClose}) },
		func() error { return b.pairs(plan{kind: "deferred", to: at("127.0.0.1"), n: 7, deferred: true}) },
		func() error { return b.home.do(b.lost) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// closed is how many connections closeSome makes, and waiting how many of them are in
// TIME_WAIT then. The others end with a reset, because something was left unread.
const (
	closed  = 40
	waiting = closed - closed/10
)

// closeSome makes connections and closes them. They stay in TIME_WAIT for a minute
// (TCP_TIMEWAIT_LEN, include/net/tcp.h), however slow the machine is, so they are made last.
func (b *board) closeSome() error {
	return errors.Join(b.pairs(plan{kind: "closed", to: netip.MustParseAddr("127.0.0.1"), n: closed / 2, drop: true}),
		b.pairs(plan{kind: "closed", to: netip.MustParseAddr("::1"), n: closed / 2, drop: true}))
}

// plan is a number of connections of one kind.
type plan struct {
	kind             string
	to               netip.Addr
	n                int
	client, server   *space // nil means home
	client6, server6 bool   // IPv6 sockets, even for an IPv4 address
	scopes           [2]uint32
	then             func(client, server int) error
	drop             bool // close both ends
	deferred         bool // the server's end stays a half-open one
}

func family(a netip.Addr, six bool) int {
	if six || a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func sockaddr(a netip.Addr, port int, six bool, scope uint32) unix.Sockaddr {
	if six || a.Is6() {
		return &unix.SockaddrInet6{Port: port, Addr: a.As16(), ZoneId: scope}
	}
	return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
}

// pairs makes the connections of a plan.
func (b *board) pairs(p plan) error {
	if p.client == nil {
		p.client = b.home
	}
	if p.server == nil {
		p.server = b.home
	}
	var listener, port int
	err := p.server.do(func() (err error) { listener, port, err = p.listen(); return err })
	if err == nil {
		err = p.client.do(func() error {
			for i := range p.n {
				if err := b.pair(&p, listener, port, i); err != nil {
					return fmt.Errorf("%d: %w", i, err)
				}
			}
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.kind, err)
	}
	if p.deferred {
		return nil // the connections end with their listener
	}
	return unix.Close(listener)
}

func (p *plan) listen() (fd, port int, err error) {
	if fd, err = unix.Socket(family(p.to, p.server6), unix.SOCK_STREAM, 0); err != nil {
		return 0, 0, err
	}
	address := p.to
	if p.server6 {
		address = netip.IPv6Unspecified()
	}
	if err := unix.Bind(fd, sockaddr(address, 0, p.server6, p.scopes[1])); err != nil {
		return 0, 0, fmt.Errorf("bind: %w", err)
	}
	if p.deferred {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 86400); err != nil {
			return 0, 0, err
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, 0, err
	}
	return fd, int(addrPort(name).Port()), unix.Listen(fd, 128)
}

// pair makes one connection, on which some bytes go both ways.
func (b *board) pair(p *plan, listener, port, i int) error {
	client, err := unix.Socket(family(p.to, p.client6), unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(client, sockaddr(p.to, port, p.client6, p.scopes[0])); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if p.deferred {
		b.held = append(b.held, held{kind: p.kind, fd: client, in: p.client})
		return nil
	}
	server, _, err := unix.Accept(listener)
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	if err := exchange(client, server, i); err != nil {
		return fmt.Errorf("exchange: %w", err)
	}
	if p.drop {
		return errors.Join(unix.Close(client), unix.Close(server))
	}
	b.held = append(b.held, held{kind: p.kind, fd: client, in: p.client}, held{kind: p.kind, fd: server, in: p.server})
	if p.then != nil {
		return p.then(client, server)
	}
	return nil
}

// exchange sends some bytes both ways. In every tenth pair the server leaves them unread.
func exchange(client, server, i int) error {
	b := make([]byte, 1+rand.IntN(3000))
	if _, err := unix.Write(client, b); err != nil {
		return err
	}
	if i%10 != 9 {
		for n := len(b); n > 0; {
			got, err := unix.Read(server, b[:n])
			if err != nil {
				return err
			}
			n -= got
		}
	}
	b = b[:1+rand.IntN(len(b))]
	if _, err := unix.Write(server, b); err != nil {
		return err
	}
	for n := len(b); n > 0; {
		got, err := unix.Read(client, b[:n])
		if err != nil {
			return err
		}
		n -= got
	}
	return nil
}

// fill writes until no more fits: nobody reads, and the window closes.
func fill(client, _ int) error {
	if err := unix.SetNonblock(client, true); err != nil {
		return err
	}
	b := make([]byte, 1<<16)
	for {
		if _, err := unix.Write(client, b); errors.Is(err, unix.EAGAIN) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func halfClose(client, server int) error { return unix.Shutdown(client, unix.SHUT_WR) }

// Options of include/uapi/linux/tcp.h.
const (
	repairOff = -1 // TCP_REPAIR_OFF_NO_WP: without a window probe
	recvQueue = 1  // TCP_RECV_QUEUE
	sendQueue = 2  // TCP_SEND_QUEUE
)

// lost makes connections whose packets the dummy device swallows: what is written
// stays in flight.
func (b *board) lost() error {
	for i, to := range []string{"10.9.0.50", "fd09::50", "10.9.0.51", "fd09::51", "10.9.0.52", "fd09::52"} {
		for j, size := range []int{0, 1, 700, 5000, 400_000} {
			fd, err := fabricate(netip.MustParseAddr(to), 1000+100*i+j)
			if err != nil {
				return fmt.Errorf("fabricate connection to %s: %w", to, err)
			}
			b.held = append(b.held, held{kind: "lost", fd: fd, in: b.home})
			if _, err := unix.Write(fd, make([]byte, size)); err != nil && !errors.Is(err, unix.EAGAIN) {
				return fmt.Errorf("write to %s: %w", to, err)
			}
			if i >= 4 { // its FIN is in flight
				if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
					return err
				}
			}
		}
		fd, err := unix.Socket(family(netip.MustParseAddr(to), false), unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		nobody := netip.AddrPortFrom(netip.MustParseAddr(to), 80)
		b.held = append(b.held, held{kind: "unanswered", fd: fd, in: b.home, to: nobody})
		if err := unix.Connect(fd, sockaddr(nobody.Addr(), int(nobody.Port()), false, 0)); !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect to nobody: %w", err)
		}
	}
	return nil
}

// fabricate makes a connection without a peer (TCP_REPAIR, as CRIU does).
func fabricate(to netip.Addr, port int) (int, error) {
	fd, err := unix.Socket(family(to, false), unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	set := func(name, value int) {
		if err == nil {
			err = os.NewSyscallError(fmt.Sprintf("setsockopt %d", name), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, name, value))
		}
	}
	send, recv := rand.Uint32(), rand.Uint32()
	set(unix.TCP_REPAIR, 1)
	set(unix.TCP_REPAIR_QUEUE, sendQueue)
	set(unix.TCP_QUEUE_SEQ, int(int32(send)))
	set(unix.TCP_REPAIR_QUEUE, recvQueue)
	set(unix.TCP_QUEUE_SEQ, int(int32(recv)))
	if err == nil {
		err = unix.Connect(fd, sockaddr(to, port, false, 0))
	}
	if err == nil {
		err = setWindow(fd, recv)
	}
	set(unix.TCP_REPAIR, repairOff)
	return fd, err
}
