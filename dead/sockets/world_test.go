package sockets_test

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/sockets"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// The offsets of the made-up kernel's structures, in bytes: of sock_common, which a
// tcp_sock has at tcpCommon; of the rest of tcp_sock; and of the others.
const (
	scHash, scFamily, scState, scBound, scProto, scNet = 4, 0, 2, 12, 16, 24
	scDaddr, scSaddr, scDaddr6, scSaddr6, scNode       = 32, 36, 40, 56, 72
	scDport, scNum, scSize                             = 8, 10, 96

	tcpCommon                                      = 0
	tkSlock, tkOwned, tkProtocol, tkSport, tkSaddr = 96, 100, 104, 106, 108
	tkMore6, tkUna, tkNxt, tkRcv, tkWrite, tkCopy  = 112, 120, 124, 128, 132, 136
	tkOut, tkSize                                  = 140, 192

	rqReceived, rqSent, rqNxt, rqSize = 112, 116, 120, 128

	netList, netInum, netMix, netInfo, netSize = 8, 24, 32, 40, 64

	nbNext, nbTable, nbState, nbDead, nbFlags, nbHa = 0, 8, 16, 17, 20, 24
	nbSeq, nbHeaderLen, nbHeader, nbDev, nbSize     = 56, 64, 72, 104, 112

	dvName, dvLen, dvIndex, dvNet, dvSize = 8, 24, 28, 32, 64
)

func types() []btf.Type {
	u8, u16 := &btf.Int{Name: "u8", Size: 1}, &btf.Int{Name: "u16", Size: 2}
	u32, u64 := &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	blob := func(n uint32) btf.Type { return &btf.Array{Index: u32, Type: u8, Nelems: n} }
	field := func(name string, off uint32, t btf.Type) btf.Member {
		return btf.Member{Name: name, Type: t, Offset: btf.Bits(off * 8)}
	}
	st := func(name string, size uint32, m ...btf.Member) *btf.Struct {
		return &btf.Struct{Name: name, Size: size, Members: m}
	}
	common := st("sock_common", scSize, field("skc_family", scFamily, u16), field("skc_state", scState, u8), field("skc_hash", scHash, u32),
		field("skc_dport", scDport, u16), field("skc_num", scNum, u16), field("skc_bound_dev_if", scBound, u32),
		field("skc_prot", scProto, u64), field("skc_net", scNet, st("possible_net_t", 8, field("net", 0, u64))),
		field("skc_daddr", scDaddr, u32), field("skc_rcv_saddr", scSaddr, u32), field("skc_v6_daddr", scDaddr6, blob(16)),
		field("skc_v6_rcv_saddr", scSaddr6, blob(16)), field("skc_nulls_node", scNode, blob(16)))
	sock := st("sock", 106, field("__sk_common", tcpCommon, common),
		field("sk_lock", tkSlock, st("socket_lock_t", 8, field("slock", 0, st("spinlock", 4, field("rlock", 0, st("raw_spinlock", 4, field("raw_lock", 0, st("qspinlock", 4, field("val", 0, u32))))))), field("owned", 4, u32))), field("sk_protocol", tkProtocol, u16))
	inet := st("inet_sock", 120, field("sk", 0, sock), field("inet_sport", tkSport, u16), field("inet_saddr", tkSaddr, u32), field("pinet6", tkMore6, u64))
	icsk := st("inet_connection_sock", 120, field("icsk_inet", 0, inet))
	return []btf.Type{
		st("page", kerneltest.PageStruct, field("flags", 0, u64)),
		common, inet, icsk,
		st("tcp_sock", tkSize, field("inet_conn", 0, icsk), field("snd_una", tkUna, u32), field("snd_nxt", tkNxt, u32), field("rcv_nxt", tkRcv, u32),
			field("write_seq", tkWrite, u32), field("copied_seq", tkCopy, u32), field("packets_out", tkOut, u32)),
		st("tcp_request_sock", rqSize, field("req", 0, st("inet_request_sock", scSize, field("req", 0, st("request_sock", scSize, field("__req_common", 0, common))))),
			field("rcv_isn", rqReceived, u32), field("snt_isn", rqSent, u32), field("rcv_nxt", rqNxt, u32)),
		st("ipv6_pinfo", 32, field("saddr", 8, blob(16))),
		st("proto", 64, field("name", 16, blob(32))),
		st("inet_hashinfo", 24, field("ehash_mask", 4, u32), field("ehash", 8, u64)),
		st("inet_ehash_bucket", 8, field("chain", 0, u64)),
		st("net", netSize, field("list", netList, blob(16)), field("ns", netInum, st("ns_common", 4, field("inum", 0, u32))), field("hash_mix", netMix, u32),
			field("ipv4", netInfo, st("netns_ipv4", 16, field("tcp_death_row", 0, st("inet_timewait_death_row", 8, field("hashinfo", 0, u64)))))),
		st("neigh_table", 24, field("nht", 8, u64), field("key_len", 16, u32)),
		st("neigh_hash_table", 32, field("hash_heads", 0, u64), field("hash_shift", 8, u32), field("hash_rnd", 12, blob(16))),
		st("neighbour", nbSize, field("hash", nbNext, st("hlist_node", 8, field("next", 0, u64))), field("tbl", nbTable, u64), field("nud_state", nbState, u8),
			field("dead", nbDead, u8), field("flags", nbFlags, u32), field("ha", nbHa, blob(32)),
			field("ha_lock", nbSeq, st("seqlock_t", 4, field("seqcount", 0, st("seqcount_spinlock_t", 4, field("seqcount", 0, st("seqcount", 4, field("sequence", 0, u32))))))),
			field("hh", nbHeaderLen, st("hh_cache", 40, field("hh_len", 0, u32), field("hh_data", nbHeader-nbHeaderLen, blob(32)))), field("dev", nbDev, u64)),
		st("net_device", dvSize, field("name", dvName, blob(16)), field("addr_len", dvLen, u8), field("ifindex", dvIndex, u32),
			field("nd_net", dvNet, st("possible_net_t", 8, field("net", 0, u64)))),
	}
}

const (
	inode  = 4026531840
	mix    = 0x1234
	secret = 0x5eed
	size   = 4 // buckets
)

// world is a machine with some connections and neighbours.
type world struct {
	*kerneltest.Machine
	net, proto, info, buckets, device, arp, heads addr.Virt
	nodes                                         []addr.Virt // everything of interest, for damage
}

func newWorld(t testing.TB) *world {
	w := &world{Machine: kerneltest.New(t)}
	list := w.Image("net_namespace_list", 16)
	w.net, w.proto, w.device = w.alloc(netSize), w.alloc(64), w.alloc(dvSize)
	w.PutU64(list, uint64(w.net+netList))
	w.PutU64(list+8, uint64(w.net+netList))
	w.PutU64(w.net+netList, uint64(list))
	w.PutU64(w.net+netList+8, uint64(list))
	w.PutU32(w.net+netInum, inode)
	w.PutU32(w.net+netMix, mix)
	w.Put(w.proto+16, []byte("TCP"))
	w.info = w.Image("tcp_hashinfo", 24)
	w.buckets = w.alloc(8 * size)
	w.PutU32(w.info+4, size-1)
	w.PutU64(w.info+8, uint64(w.buckets))
	w.PutU64(w.net+netInfo, uint64(w.info))
	for i := range addr.Virt(size) {
		w.PutU64(w.buckets+8*i, uint64(i)<<1|1)
	}
	// mov key(%rip),%eax
	code, key := w.Image("inet_ehashfn", 512), w.Image("key", 4)
	w.Put(code+9, append([]byte{0x8b, 0x05}, binary.LittleEndian.AppendUint32(nil, uint32(key-code-15))...))
	w.PutU32(key, secret)

	w.Put(w.device+dvName, []byte("eth0"))
	w.Put(w.device+dvLen, []byte{6})
	w.PutU32(w.device+dvIndex, 2)
	w.PutU64(w.device+dvNet, uint64(w.net))
	w.arp = w.Image("arp_tbl", 24)
	hash := w.alloc(32)
	w.heads = w.alloc(8 * 2)
	w.PutU64(w.arp+8, uint64(hash))
	w.PutU32(w.arp+16, 4)
	w.PutU64(hash, uint64(w.heads))
	w.PutU32(hash+8, 1)
	w.PutU32(hash+12, 0x80000001)
	w.nodes = append(w.nodes, w.info, w.arp)
	return w
}

func (w *world) alloc(n int) addr.Virt {
	at := w.Alloc(n)
	w.nodes = append(w.nodes, at)
	return at
}

func (w *world) u64(at addr.Virt) uint64 { return binary.LittleEndian.Uint64(w.Mem[w.Phys(at):]) }

// connect adds a connection between two ends to its chain.
func (w *world) connect(local, remote string) addr.Virt {
	from, to := netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote)
	s := w.alloc(tkSize)
	family := []byte{2, 0, 1}
	if from.Addr().Is6() {
		family[0] = 10
	}
	from6, to6 := from.Addr().As16(), to.Addr().As16()
	w.Put(s+scDaddr6, to6[:])
	w.Put(s+scSaddr6, from6[:])
	w.Put(s+scDaddr, to6[12:])
	w.Put(s+scSaddr, from6[12:])
	w.Put(s+tkSaddr, from6[12:])
	more := w.alloc(32)
	w.Put(more+8, from6[:])
	w.PutU64(s+tkMore6, uint64(more))
	w.Put(s+scFamily, family)
	w.Put(s+scNum, binary.LittleEndian.AppendUint16(nil, from.Port()))
	w.Put(s+tkSport, binary.BigEndian.AppendUint16(nil, from.Port()))
	w.Put(s+scDport, binary.BigEndian.AppendUint16(nil, to.Port()))
	w.PutU64(s+scProto, uint64(w.proto))
	w.PutU64(s+scNet, uint64(w.net))
	w.Put(s+tkProtocol, []byte{6})
	for at, v := range map[addr.Virt]uint32{tkUna: 100, tkNxt: 100, tkWrite: 100, tkRcv: 7, tkCopy: 7} {
		w.PutU32(s+at, v)
	}
	ports := uint32(from.Port())<<16 | uint32(bits.ReverseBytes16(to.Port()))
	w.hash(s, sockets.Hash3(binary.LittleEndian.Uint32(from6[12:]), binary.LittleEndian.Uint32(to6[12:]), ports, secret+mix))
	return s
}

// halfOpen turns a connection into one whose handshake is not complete.
func (w *world) halfOpen(s addr.Virt, sent, received, next uint32) {
	w.Put(s+scState, []byte{12})
	w.PutU32(s+rqSent, sent)
	w.PutU32(s+rqReceived, received)
	w.PutU32(s+rqNxt, next)
}

// hash puts a connection first in the chain of its hash.
func (w *world) hash(s addr.Virt, hash uint32) {
	w.PutU32(s+scHash, hash)
	head := w.buckets + 8*addr.Virt(hash%size)
	next := w.u64(head)
	w.PutU64(s+scNode, next)
	w.PutU64(s+scNode+8, uint64(head))
	if next&1 == 0 {
		w.PutU64(addr.Virt(next)+8, uint64(s+scNode))
	}
	w.PutU64(head, uint64(s+scNode))
}

// neighbour adds a neighbour, with a header that is ready.
func (w *world) neighbour(ip string, state byte) addr.Virt {
	n := w.alloc(nbSize + 4)
	key := netip.MustParseAddr(ip).As4()
	mac := []byte{2, 0, 0, 0, 0, key[3]}
	w.PutU64(n+nbTable, uint64(w.arp))
	w.Put(n+nbState, []byte{state})
	w.Put(n+nbHa, mac)
	w.PutU32(n+nbHeaderLen, 14)
	w.Put(n+nbHeader+2, mac)
	w.PutU64(n+nbDev, uint64(w.device))
	w.Put(n+nbSize, key[:])
	hash := (binary.LittleEndian.Uint32(key[:]) ^ uint32(w.device) ^ uint32(w.device>>32)) * 0x80000001
	head := w.heads + 8*addr.Virt(hash>>31)
	w.PutU64(n+nbNext, w.u64(head))
	w.PutU64(head, uint64(n))
	return n
}

// busy is a world with some of everything.
func busy(t testing.TB) *world {
	w := newWorld(t)
	for _, ends := range [][2]string{
		{"10.0.0.1:2049", "10.0.0.2:700"}, {"10.0.0.1:2049", "10.0.0.3:700"}, {"10.0.0.1:2049", "10.0.0.4:701"},
		{"10.0.0.1:2049", "10.0.0.5:702"}, {"10.0.0.1:2049", "10.0.0.6:703"}, {"10.0.0.1:2049", "10.0.0.7:704"},
	} {
		w.connect(ends[0], ends[1])
	}
	for _, ip := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"} {
		w.neighbour(ip, 0x04)
	}
	return w
}

func (w *world) open(t testing.TB) *kernel.Kernel {
	t.Helper()
	k, err := kernel.Find(w)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (w *world) u32(at addr.Virt) uint32 { return binary.LittleEndian.Uint32(w.Mem[w.Phys(at):]) }
