package sockets

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// neighbourLayout says where the members of the kernel's structures about
// neighbours are.
type neighbourLayout struct {
	tableSize         int
	hashTable, keyLen kernel.Field // in neigh_table

	hashSize             int
	buckets, shift, keys kernel.Field // in neigh_hash_table

	size                       int          // of neighbour; behind it is the protocol address
	next, back                 kernel.Field // back is missing up to 6.12
	table, state, dead, flags  kernel.Field
	dev, ha, header, headerLen kernel.Field
	writing                    kernel.Field // the sequence count of ha_lock: odd while ha is being changed

	deviceSize                int
	name, addrLen, index, net kernel.Field // in net_device
}

func newNeighbourLayout(k *kernel.Kernel) (*neighbourLayout, error) {
	types := k.Types()
	l := &neighbourLayout{}
	t := types.Layout("neigh_table")
	l.tableSize = t.Size
	l.hashTable, l.keyLen = t.Field("nht", 8), t.Field("key_len", 4)
	h := types.Layout("neigh_hash_table")
	l.hashSize = h.Size
	l.buckets = h.First([]string{"hash_buckets", "hash_heads"}, 8)
	l.shift, l.keys = h.Field("hash_shift", 4), h.Field("hash_rnd", 16)
	n := types.Layout("neighbour")
	l.size = n.Size
	l.next = n.First([]string{"next", "hash.next"}, 8)
	l.back = n.Optional("hash.pprev", 8)
	l.table, l.dev = n.Field("tbl", 8), n.Field("dev", 8)
	l.state, l.dead, l.flags = n.Field("nud_state", 1), n.Field("dead", 1), n.Field("flags", 1, 4)
	l.ha = n.Field("ha", 32)
	l.header, l.headerLen = n.Field("hh.hh_data"), n.Field("hh.hh_len", 4)
	l.writing = n.Field("ha_lock.seqcount.seqcount.sequence", 4)
	// The protocol address is the last member, a flexible array (primary_key).
	if n.Err() == nil && n.Size != l.dev.Off+l.dev.Size {
		return nil, errors.New("struct neighbour does not end with its device and address")
	}
	d := types.Layout("net_device")
	l.deviceSize = d.Size
	l.name, l.addrLen = d.Field("name", 16), d.Field("addr_len", 1)
	l.index, l.net = d.Field("ifindex", 4), d.Field("nd_net.net", 8)
	l.ha.Size = 6 // only so much of it is used
	return l, errors.Join(t.Err(), h.Err(), n.Err(), d.Err())
}

// etherHeader is the length of an Ethernet header, and etherAt its offset in hh_data:
// the end of the header is aligned (include/linux/netdevice.h, HH_DATA_OFF).
const (
	etherHeader = 14
	etherAt     = 2
)

// checkMAC compares a link-layer address with the header that the kernel has ready
// for packets to it.
func (l *neighbourLayout) checkMAC(mac [6]byte, b []byte) error {
	if l.writing.Uint(b)%2 != 0 {
		return bad(BadLinkAddress, "it was being changed")
	}
	if l.headerLen.Uint(b) != etherHeader {
		return nil
	}
	if to := l.header.Bytes(b)[etherAt : etherAt+len(mac)]; !bytes.Equal(to, mac[:]) {
		return bad(BadLinkAddress, "it is %x, and headers have %x", mac, to)
	}
	return nil
}

// device is a struct net_device.
type device struct {
	name      string
	index     uint32
	addrLen   int // of its link-layer addresses, in bytes
	namespace uint32
	err       error // why it is implausible
}

// device reads the network device at an address, and remembers it.
func (r *neighbourReader) device(at addr.Virt) (device, error) {
	d, ok := r.devices[at]
	if !ok {
		d = r.readDevice(at)
		r.devices[at] = d
	}
	return d, d.err
}

func (r *neighbourReader) readDevice(at addr.Virt) device {
	l := r.l
	b, err := r.k.Bytes(at, l.deviceSize)
	if err != nil {
		return device{err: wrong{BadDevice, err}}
	}
	d := device{name: l.name.String(b), index: uint32(l.index.Uint(b)), addrLen: int(l.addrLen.Uint(b))}
	net, ok := r.spaces[l.net.Pointer(b)]
	d.namespace = net.inode
	switch {
	case !ok:
		d.err = bad(BadNamespace, "the namespace of its device is at %v", l.net.Pointer(b))
	case !validName(d.name) || int32(d.index) <= 0:
		d.err = wrong{BadDevice, fmt.Errorf("device %d is named %q", d.index, d.name)}
	}
	return d
}

// validName reports whether a device may have a name (net/core/dev.c, dev_valid_name).
func validName(name string) bool {
	return name != "" && len(name) < 16 && name != "." && name != ".." &&
		!strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == ':' || r <= ' ' || r == 0x7f || r == 0xfffd })
}
