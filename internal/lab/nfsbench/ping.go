package nfsbench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"understudy.dev/understudy/internal/live/netns"
)

// ICMP of a ping (RFC 792).
const (
	echoRequest = 8
	echoReply   = 0
	echoBytes   = 16
	pingEvery   = 2 * time.Millisecond
)

// echo is a request, or the reply to it.
func echo(kind byte, id, seq uint16) []byte {
	b := make([]byte, echoBytes)
	b[0] = kind
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// checksum computes the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// ping pings an address every 2 ms from inside a network namespace, until the context
// ends; each reply is a completion.
func ping(ctx context.Context, in *netns.Namespace, to string, m *Moments) error {
	var conn net.PacketConn
	err := in.Do(func() (err error) {
		conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return fmt.Errorf("open socket for pings: %w", err)
	}
	address, err := net.ResolveIPAddr("ip4", to) // a literal
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	const id = 0x7573
	go func() {
		tick := time.NewTicker(pingEvery)
		defer tick.Stop()
		for seq := uint16(0); ; seq++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			_, _ = conn.WriteTo(echo(echoRequest, id, seq), address) // unreachable: no reply either
		}
	}()
	b := make([]byte, 1500)
	for ctx.Err() == nil {
		n, from, err := conn.ReadFrom(b) // without the IP header
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			continue // an ICMP error that came back
		}
		if n >= 8 && b[0] == echoReply && binary.BigEndian.Uint16(b[4:]) == id && from.String() == to {
			_ = m.do("ping", to, func() error { return nil })
		}
	}
	return nil
}
