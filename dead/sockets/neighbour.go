package sockets

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Neighbour is an entry of arp_tbl or nd_tbl with a valid link-layer address, on a
// device whose addresses have 6 bytes.
type Neighbour struct {
	Interface string // name of the network device
	Index     uint32 // of the network device
	Address   netip.Addr
	MAC       [6]byte
	// Permanent says that the entry was configured (NUD_PERMANENT), and not learned
	// by the kernel.
	Permanent bool
	// Router says that the neighbour is a router (NTF_ROUTER).
	Router bool
	// Namespace is the inode number of the network namespace of the device.
	Namespace uint32
	// Addr is where its struct neighbour is.
	Addr addr.Virt
}

// States and flags of struct neighbour (include/uapi/linux/neighbour.h). Entries with
// NUD_NOARP have an address that follows from the device or the protocol address.
const (
	nudReachable = 0x02
	nudStale     = 0x04
	nudDelay     = 0x08
	nudProbe     = 0x10
	nudPermanent = 0x80
	nudLearned   = nudReachable | nudStale | nudDelay | nudProbe

	ntfRouter = 0x80
)

// Neighbours yields the neighbours of all network namespaces. An entry that does
// not check out is a *Refusal, and the walk goes on; other errors say what part of
// the kernel could not be walked. A kernel without IPv6 has no IPv6 neighbours, and one
// without TCP (Without) has none at all.
func Neighbours(k *kernel.Kernel) iter.Seq2[Neighbour, error] {
	return func(yield func(Neighbour, error) bool) {
		if Without(k) != "" {
			return
		}
		l, err := newNeighbourLayout(k)
		if err != nil {
			yield(Neighbour{}, fmt.Errorf("read layouts of %s: %w", k.Release, err))
			return
		}
		r := &neighbourReader{k: k, l: l, devices: make(map[addr.Virt]device)}
		if r.spaces, err = readNamespaces(k); err != nil && !yield(Neighbour{}, fmt.Errorf("walk network namespaces: %w", err)) {
			return
		}
		for _, table := range []struct {
			symbol, name string
			keyLen       int
		}{{"arp_tbl", "arp", 4}, {"nd_tbl", "nd", 16}} { // net/ipv4/arp.c, net/ipv6/ndisc.c
			at, err := k.Symbol(table.symbol)
			if errors.Is(err, kernel.ErrNotFound) && table.keyLen == 16 {
				continue
			}
			t := &neighbourTable{tally: tally{table: table.name, at: at}, keyLen: table.keyLen, seen: make(map[addr.Virt]struct{})}
			if err == nil {
				err = r.open(t)
			}
			if err != nil {
				if !yield(Neighbour{}, err) {
					return
				}
				continue
			}
			if !r.walk(t, yield) {
				return
			}
		}
	}
}

type neighbourReader struct {
	k       *kernel.Kernel
	l       *neighbourLayout
	spaces  map[addr.Virt]namespace
	devices map[addr.Virt]device
}

// neighbourTable is the hash table of a struct neigh_table.
type neighbourTable struct {
	tally
	keyLen  int // of a protocol address, in bytes
	buckets addr.Virt
	shift   uint // the number of buckets is 1<<shift
	keys    [4]uint32
	seen    map[addr.Virt]struct{}
}

// maxShift bounds a table's size: the kernel doubles it with the number of entries.
const maxShift = 20

// open reads where the buckets are, how many, and the keys of the hash.
func (r *neighbourReader) open(t *neighbourTable) error {
	b, err := r.k.Bytes(t.at, r.l.tableSize)
	if err != nil {
		return t.refuse(-1, t.at, Unreadable, err)
	}
	if n := r.l.keyLen.Uint(b); n != uint64(t.keyLen) {
		return t.refuse(-1, t.at, BadTable, fmt.Errorf("its addresses have %d bytes", n))
	}
	hash := r.l.hashTable.Pointer(b)
	if b, err = r.k.Bytes(hash, r.l.hashSize); err != nil {
		return t.refuse(-1, hash, Unreadable, err)
	}
	t.buckets = r.l.buckets.Pointer(b)
	shift := r.l.shift.Uint(b)
	if shift == 0 || shift > maxShift {
		return t.refuse(-1, hash, BadTable, fmt.Errorf("hash table with 2^%d buckets", shift))
	}
	t.shift = uint(shift)
	for i := range t.keys {
		t.keys[i] = uint32(kernel.Field{Off: r.l.keys.Off + 4*i, Size: 4}.Uint(b))
	}
	return nil
}

// walk yields the neighbours of one table. It returns false if no more are wanted.
func (r *neighbourReader) walk(t *neighbourTable, yield func(Neighbour, error) bool) bool {
	b, err := r.k.Bytes(t.buckets, 8<<t.shift)
	if err != nil {
		return yield(Neighbour{}, t.refuse(-1, t.buckets, Unreadable, err))
	}
	for i := range 1 << t.shift {
		if !r.chain(t, i, kernel.Field{Off: 8 * i, Size: 8}.Pointer(b), yield) {
			return false
		}
		if t.full() {
			break
		}
	}
	return true
}

// chain yields the neighbours of one bucket. Up to 6.12 an entry has a pointer to the
// next one only; since then it points back as well (commit f7f52738637f).
func (r *neighbourReader) chain(t *neighbourTable, bucket int, entry addr.Virt, yield func(Neighbour, error) bool) bool {
	pointer := t.buckets + addr.Virt(8*bucket)
	for entry != 0 {
		at := entry - addr.Virt(r.l.next.Off)
		if _, met := t.seen[at]; met {
			return yield(Neighbour{}, t.refuse(bucket, at, BadChain, errors.New("entry is in two chains, or the chain is circular")))
		}
		t.seen[at] = struct{}{}
		b, err := r.k.Bytes(at, r.l.size)
		if err == nil && r.l.back.Present() && r.l.back.Pointer(b) != pointer {
			err = bad(BadChain, "it points back to %v, not %v", r.l.back.Pointer(b), pointer)
		}
		if err == nil && r.l.table.Pointer(b) != t.at {
			err = bad(BadChain, "it is of the table at %v", r.l.table.Pointer(b))
		}
		if err != nil { // what comes after it is not to be trusted
			return yield(Neighbour{}, t.refuseFor(bucket, at, err))
		}
		n, err := r.neighbour(t, bucket, at, b)
		switch {
		case errors.Is(err, errNoAddress):
		case err != nil:
			if !yield(Neighbour{}, t.refuseFor(bucket, at, err)) {
				return false
			}
		case !yield(n, nil):
			return false
		}
		if t.full() {
			return true
		}
		pointer, entry = entry, r.l.next.Pointer(b)
	}
	return true
}

// errNoAddress says that an entry has no link-layer address, or none of 6 bytes.
var errNoAddress = errors.New("entry has no link-layer address")

// neighbour reads the entry at an address, whose struct neighbour is b.
func (r *neighbourReader) neighbour(t *neighbourTable, bucket int, at addr.Virt, b []byte) (Neighbour, error) {
	l := r.l
	key, err := r.k.Bytes(at+addr.Virt(l.size), t.keyLen)
	if err != nil {
		return Neighbour{}, err
	}
	dev := l.dev.Pointer(b)
	if hash := t.hash(key, dev); hash>>(32-t.shift) != uint32(bucket) {
		return Neighbour{}, bad(BadHash, "the hash of its key is %#x", hash)
	}
	state := l.state.Uint(b)
	if state&(nudLearned|nudPermanent) == 0 || l.dead.Uint(b) != 0 {
		return Neighbour{}, errNoAddress
	}
	if state&(state-1) != 0 {
		return Neighbour{}, bad(BadState, "its state is %#x", state)
	}
	d, err := r.device(dev)
	if err != nil {
		return Neighbour{}, err
	}
	n := Neighbour{
		Interface: d.name, Index: d.index, Namespace: d.namespace, Addr: at,
		Permanent: state == nudPermanent, Router: l.flags.Uint(b)&ntfRouter != 0,
	}
	n.Address, _ = netip.AddrFromSlice(key) // it has 4 or 16 bytes
	if n.Address.IsUnspecified() {
		return n, bad(BadAddress, "it is %v", n.Address)
	}
	n.MAC = [6]byte(l.ha.Bytes(b))
	if d.addrLen != len(n.MAC) || n.MAC == [6]byte{} {
		return n, errNoAddress
	}
	return n, l.checkMAC(n.MAC, b)
}

// hash returns the hash of a key (include/net/arp.h, arp_hashfn; include/net/ndisc.h,
// ndisc_hashfn).
func (t *neighbourTable) hash(key []byte, dev addr.Virt) uint32 {
	sum := uint32(0)
	for i := range len(key) / 4 {
		word := uint32(kernel.Field{Off: 4 * i, Size: 4}.Uint(key))
		if i == 0 {
			word ^= uint32(dev) ^ uint32(dev>>32) // include/linux/hash.h, hash32_ptr
		}
		sum += word * t.keys[i]
	}
	return sum
}
