package sockets

import (
	"errors"

	"understudy.dev/understudy/dead/kernel"
)

// sockLayout says where the members of the kernel's structures about connections are.
type sockLayout struct {
	ehash, mask kernel.Field // in inet_hashinfo
	infoSize    int
	bucketSize  int // of inet_ehash_bucket, whose chain is at its start

	common commonLayout

	// In tcp_sock, whose beginning is a struct sock_common, too.
	tcpSize                                       int
	commonIn                                      kernel.Field
	protocol, owned                               kernel.Field
	slock                                         kernel.Lock
	sport, source4, more6                         kernel.Field // in its struct inet_sock
	sndUna, sndNxt, rcvNxt, writeSeq, copied, out kernel.Field

	// In tcp_request_sock, likewise.
	requestSize                                 int
	requestIn, synSent, synReceived, requestNxt kernel.Field

	source6   kernel.Field // in ipv6_pinfo, where more6 points
	protoName kernel.Field // in proto
}

// commonLayout is struct sock_common, which minisocks begin with as well.
type commonLayout struct {
	size                                              int
	node, hash, family, state, bound, proto, net      kernel.Field
	remote4, local4, remote6, local6, remotePort, num kernel.Field
}

func newSockLayout(k *kernel.Kernel) (*sockLayout, error) {
	types := k.Types()
	l := &sockLayout{}
	h := types.Layout("inet_hashinfo")
	l.infoSize = h.Size
	l.ehash = h.Field("ehash", 8)
	l.mask = h.Field("ehash_mask", 4)
	b := types.Layout("inet_ehash_bucket")
	l.bucketSize = b.Size
	if chain := b.Field("chain", 8); b.Err() == nil && (chain.Off != 0 || b.Size != chain.Size) {
		return nil, errors.New("struct inet_ehash_bucket has more than its chain")
	}
	c, err := newCommonLayout(types)
	l.common = c
	t := types.Layout("tcp_sock")
	l.tcpSize = t.Size
	const sock = "inet_conn.icsk_inet.sk."
	l.commonIn = t.Field(sock+"__sk_common", c.size)
	l.protocol = t.Field(sock+"sk_protocol", 2)
	l.slock = t.Lock(sock + "sk_lock.slock")
	l.owned = t.Field(sock+"sk_lock.owned", 4)
	l.sport, l.source4 = t.Field("inet_conn.icsk_inet.inet_sport", 2), t.Field("inet_conn.icsk_inet.inet_saddr", 4)
	l.more6 = t.Optional("inet_conn.icsk_inet.pinet6", 8)
	p6 := types.Layout("ipv6_pinfo")
	if l.more6.Present() {
		l.source6 = p6.Field("saddr", 16)
	}
	l.sndUna, l.sndNxt, l.rcvNxt = t.Field("snd_una", 4), t.Field("snd_nxt", 4), t.Field("rcv_nxt", 4)
	l.writeSeq, l.copied = t.Field("write_seq", 4), t.Field("copied_seq", 4)
	l.out = t.Field("packets_out", 4)
	q := types.Layout("tcp_request_sock")
	l.requestSize = q.Size
	l.requestIn = q.Field("req.req.__req_common", c.size)
	l.synSent, l.synReceived, l.requestNxt = q.Field("snt_isn", 4), q.Field("rcv_isn", 4), q.Field("rcv_nxt", 4)
	p := types.Layout("proto")
	l.protoName = p.Field("name", 32)
	return l, errors.Join(h.Err(), b.Err(), err, t.Err(), q.Err(), p.Err())
}

func newCommonLayout(types *kernel.Types) (commonLayout, error) {
	l := types.Layout("sock_common")
	c := commonLayout{size: l.Size}
	c.node = l.Field("skc_nulls_node", 16)
	c.hash = l.Field("skc_hash", 4)
	c.family, c.state = l.Field("skc_family", 2), l.Field("skc_state", 1)
	c.bound = l.Field("skc_bound_dev_if", 4)
	c.proto, c.net = l.Field("skc_prot", 8), l.Field("skc_net.net", 8)
	c.remote4, c.local4 = l.Field("skc_daddr", 4), l.Field("skc_rcv_saddr", 4)
	// Without IPv6 in the kernel they are missing.
	c.remote6, c.local6 = l.Optional("skc_v6_daddr", 16), l.Optional("skc_v6_rcv_saddr", 16)
	c.remotePort, c.num = l.Field("skc_dport", 2), l.Field("skc_num", 2)
	return c, l.Err()
}
