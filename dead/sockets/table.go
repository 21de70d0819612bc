package sockets

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// reader reads the connections of one kernel.
type reader struct {
	k         *kernel.Kernel
	l         *sockLayout
	spaces    map[addr.Virt]namespace
	hashers   [2]hasher          // for IPv4 and IPv6
	protocols map[addr.Virt]bool // whether a struct proto is of TCP
}

func newReader(k *kernel.Kernel, l *sockLayout) *reader {
	return &reader{k: k, l: l, protocols: make(map[addr.Virt]bool)}
}

// table is a hash table of connections: ehash of a struct inet_hashinfo.
type table struct {
	tally
	buckets addr.Virt
	mask    uint64
}

// tables returns the tables of all namespaces: tcp_hashinfo, and since 6.1 those of
// namespaces that have their own (commit d1e5e6408b30, tcp_child_ehash_entries).
func (r *reader) tables() ([]table, error) {
	common, err := r.k.Symbol("tcp_hashinfo") // net/ipv4/tcp_ipv4.c
	infos := map[addr.Virt]bool{}
	for _, s := range r.spaces {
		infos[s.hashInfo] = true
	}
	order := slices.Sorted(maps.Keys(infos))
	if err == nil {
		order = slices.Insert(slices.DeleteFunc(order, func(a addr.Virt) bool { return a == common }), 0, common)
	}
	var tables []table
	var errs []error
	if len(order) == 0 {
		errs = append(errs, err)
	}
	for _, at := range order {
		t, err := r.table(at)
		same := func(o table) bool { return o.buckets == t.buckets }
		switch {
		case err != nil:
			errs = append(errs, err)
		case !slices.ContainsFunc(tables, same):
			tables = append(tables, t)
		}
	}
	return tables, errors.Join(errs...)
}

// maxBuckets is 2^24: the most that tcp_child_ehash_entries may say
// (net/ipv4/sysctl_net_ipv4.c), and 32 times what the kernel chooses by itself.
const maxBuckets = 1 << 24

func (r *reader) table(info addr.Virt) (table, error) {
	t := table{tally: tally{table: "tcp", at: info}}
	b, err := r.k.Bytes(info, r.l.infoSize)
	if err != nil {
		return t, t.refuse(-1, info, Unreadable, err)
	}
	t.buckets, t.mask = r.l.ehash.Pointer(b), r.l.mask.Uint(b)
	if t.mask >= maxBuckets || t.mask&(t.mask+1) != 0 || !t.buckets.IsKernel() || t.buckets%8 != 0 {
		return t, t.refuse(-1, info, BadTable, fmt.Errorf("%d buckets at %v", t.mask+1, t.buckets))
	}
	if r.goesOn(t) {
		return t, t.refuse(-1, info, BadTable, fmt.Errorf("hash table with more than %d buckets", t.mask+1))
	}
	return t, nil
}

// goesOn reports whether there are more buckets behind the end of a table. A table that is
// larger than it says would look complete, although only a part of it is read.
func (r *reader) goesOn(t table) bool {
	const look, enough = 64, 2 // one might be chance
	empty := 0
	for i := int(t.mask) + 1; i <= int(t.mask)+look; i++ {
		v, err := r.k.U64(r.bucket(t, i))
		if err != nil {
			break
		}
		if v == endMark(i) {
			empty++
		}
	}
	return empty >= enough
}

func (r *reader) bucket(t table, n int) addr.Virt {
	return t.buckets + addr.Virt(n*r.l.bucketSize)
}

// endMark ends the chain of a bucket in place of a pointer (include/linux/list_nulls.h,
// NULLS_MARKER).
func endMark(bucket int) uint64 { return uint64(bucket)<<1 | 1 }

// bucketsAtOnce is how many buckets are read at a time.
const bucketsAtOnce = 1 << 16

// walk yields the connections of one table. It returns false if no more are wanted.
func (r *reader) walk(t table, yield func(Connection, error) bool) bool {
	size := int(t.mask) + 1
	for first := 0; first < size; first += bucketsAtOnce {
		n := min(bucketsAtOnce, size-first)
		b, err := r.k.Bytes(r.bucket(t, first), n*r.l.bucketSize)
		if err != nil {
			if !yield(Connection{}, t.refuse(-1, r.bucket(t, first), Unreadable, err)) {
				return false
			}
			continue
		}
		for i := range n {
			entry := kernel.Field{Off: i * r.l.bucketSize, Size: 8}.Uint(b)
			if entry == endMark(first+i) {
				continue
			}
			if !r.chain(&t, first+i, entry, yield) {
				return false
			}
			if t.full() {
				return true
			}
		}
	}
	return true
}

// maxChain bounds the chain of one bucket. A million connections in a table of one
// bucket are not real.
const maxChain = 1 << 20

// chain yields the connections of one bucket (struct hlist_nulls_head). Each points
// back to the pointer to it, which also rules out cycles.
func (r *reader) chain(t *table, bucket int, entry uint64, yield func(Connection, error) bool) bool {
	pointer := r.bucket(*t, bucket)
	node := r.l.common.node
	for range maxChain {
		if entry&1 != 0 {
			if entry != endMark(bucket) {
				return yield(Connection{}, t.refuse(bucket, pointer, BadChain, fmt.Errorf("it ends with %#x", entry)))
			}
			return true
		}
		sock := addr.Virt(entry) - addr.Virt(node.Off)
		b, err := r.k.Bytes(sock, r.l.common.size)
		if err != nil {
			return yield(Connection{}, t.refuse(bucket, sock, Unreadable, err))
		}
		if back := (kernel.Field{Off: node.Off + 8, Size: 8}).Pointer(b); back != pointer {
			return yield(Connection{}, t.refuse(bucket, sock, BadChain, fmt.Errorf("it points back to %v, not %v", back, pointer)))
		}
		c, err := r.sock(t, bucket, sock, b)
		switch {
		case errors.Is(err, errMini):
		case err != nil:
			if !yield(Connection{}, t.refuseFor(bucket, sock, err)) {
				return false
			}
		case !yield(c, nil):
			return false
		}
		if t.full() {
			return true
		}
		pointer, entry = addr.Virt(entry), kernel.Field{Off: node.Off, Size: 8}.Uint(b)
	}
	return yield(Connection{}, t.refuse(bucket, pointer, BadChain, errors.New("chain is longer than any table has, or circular")))
}
