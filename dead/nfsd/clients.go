// Package nfsd says which NFSv4 clients the server of a dead Linux kernel had recorded in stable storage, from its
// memory alone: they may have open files and locks that they reclaim from the next server (RFC 8881, 8.4.2). It also says
// how that server would have called them back.
//
// # Caveats
//
// Only the server of the first network namespace is read. A client that it was recording when the kernel died may be
// missing. A kernel that keeps no types of modules (before 5.11) does not tell where its nfsd keeps its clients.
package nfsd

import (
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Client is an NFSv4 client that a server had recorded in stable storage.
type Client struct {
	Name []byte // as the client chose it (co_ownerid); 1 to 1024 bytes
	// Expected says that an earlier server had recorded the client, and that it had not come back when the kernel died in
	// its grace period.
	Expected bool
}

// Bounds on what is walked. That of a name is NFS4_OPAQUE_LIMIT (include/uapi/linux/nfs4.h).
const (
	maxClients = 1 << 16
	maxPernet  = 1 << 12
	maxName    = 1024
)

// stable is the bit of cl_flags for a client that is in stable storage: NFSD4_CLIENT_STABLE
// (fs/nfsd/state.h, 5.10 to 7.2).
const stable = 1 << 2

// Clients yields the clients in the order in which they last renewed their leases, the most recent last. For a kernel
// that died in its grace period, the clients of the earlier server follow, and some of the first may be among them
// again. No client follows an error.
func Clients(k *kernel.Kernel) iter.Seq2[Client, error] {
	return func(yield func(Client, error) bool) {
		w, err := newWalk(k)
		if err == nil {
			err = w.clients(func(c Client) bool { return yield(c, nil) })
		}
		if err != nil {
			yield(Client{}, fmt.Errorf("clients of nfsd: %w", err))
		}
	}
}

// walk reads lists of one kernel.
type walk struct {
	k            *kernel.Kernel
	types        *kernel.Types // of nfsd
	nameSize     int           // of struct xdr_netobj, and its members
	length, data kernel.Field
}

func newWalk(k *kernel.Kernel) (*walk, error) {
	w := &walk{k: k, types: k.Types()}
	if w.types.Layout("nfsd_net").Err() != nil { // it is not part of the image
		var err error
		if w.types, err = k.Module("nfsd"); err != nil {
			return nil, err
		}
	}
	name := w.shared("xdr_netobj")
	w.nameSize, w.length, w.data = name.Size, name.Field("len", 4), name.Field("data", 8)
	return w, name.Err()
}

// shared returns the layout of a structure that other parts of the kernel use, too: that of the image, if one of them is
// in it, else that of nfsd.
func (w *walk) shared(name string) *kernel.Layout {
	if l := w.k.Types().Layout(name); l.Err() == nil {
		return l
	}
	return w.types.Layout(name)
}

// started returns the address and the bytes of nfsd's part of the first network namespace, a struct nfsd_net; no bytes if
// nfsd never started, so that its lists were never initialized.
func (w *walk) started(n *kernel.Layout) (at addr.Virt, b []byte, err error) {
	lru := n.Field("client_lru", 16)
	if err := n.Err(); err != nil {
		return 0, nil, err
	}
	if at, err = w.server(n.Size); err != nil {
		return 0, nil, err
	}
	b, err = w.k.Bytes(at, n.Size)
	if err != nil || lru.Pointer(b) == 0 {
		return 0, nil, err
	}
	return at, append([]byte(nil), b...), nil
}

// each visits the clients in client_lru, where nfsd has all of its clients. c is the layout of struct nfs4_client.
func (w *walk) each(n, c *kernel.Layout, server addr.Virt, visit func(at addr.Virt, b []byte) error) error {
	lru, link := n.Field("client_lru", 16), c.Field("cl_lru", 16)
	if err := errors.Join(n.Err(), c.Err()); err != nil {
		return err
	}
	return w.k.List(lru.In(server), maxClients, func(at addr.Virt) error {
		at -= addr.Virt(link.Off)
		b, err := w.k.Bytes(at, c.Size)
		if err != nil {
			return err
		}
		return visit(at, b)
	})
}

// clients visits the recorded clients, and during the grace period those in reclaim_str_hashtbl.
func (w *walk) clients(visit func(Client) bool) error {
	n, c, r := w.types.Layout("nfsd_net"), w.types.Layout("nfs4_client"), w.types.Layout("nfs4_client_reclaim")
	table := n.Field("reclaim_str_hashtbl", 8)
	flags, name := c.Field("cl_flags", 8), c.Field("cl_name", 16)
	chain, expected := r.Field("cr_strhash", 16), r.Field("cr_name", 16)
	if err := errors.Join(n.Err(), c.Err(), r.Err()); err != nil {
		return err
	}
	net, server, err := w.started(n)
	if err != nil || server == nil {
		return err
	}
	err = w.each(n, c, net, func(at addr.Virt, b []byte) error {
		if flags.Uint(b)&stable == 0 {
			return nil
		}
		return w.visit(name.In(at), false, visit)
	})
	buckets := table.Pointer(server)
	if err != nil || buckets == 0 {
		return unlessEnough(err)
	}
	if ended, err := w.ended(n, server); ended || err != nil {
		return err
	}
	for i := range addr.Virt(hashSize) {
		err := w.k.List(buckets+listHead*i, maxClients, func(at addr.Virt) error {
			return w.visit(expected.In(at-addr.Virt(chain.Off)), true, visit)
		})
		if err != nil {
			return unlessEnough(err)
		}
	}
	return nil
}

// ended reports whether the grace period of a server, whose struct nfsd_net has these bytes, has ended: by a member of its
// own, or later by a bit of flags (seen with 7.2).
func (w *walk) ended(l *kernel.Layout, server []byte) (bool, error) {
	if own := l.Optional("grace_ended", 1); own.Present() {
		return own.Uint(server) != 0, nil
	}
	flags := l.Field("flags", 8)
	bit, err := w.types.Enum("nfsd_net_flag", "NFSD_NET_GRACE_ENDED")
	if err == nil && bit > 63 {
		err = fmt.Errorf("NFSD_NET_GRACE_ENDED is bit %d", bit)
	}
	if err = errors.Join(l.Err(), err); err != nil {
		return false, err
	}
	return flags.Uint(server)>>bit&1 != 0, nil
}

// hashSize is CLIENT_HASH_SIZE (fs/nfsd/netns.h), and listHead the size of a bucket.
const (
	hashSize = 16
	listHead = 16
)

// visit visits the client whose name is in a struct xdr_netobj.
func (w *walk) visit(at addr.Virt, expected bool, visit func(Client) bool) error {
	b, err := w.k.Bytes(at, w.nameSize)
	if err != nil {
		return err
	}
	size := w.length.Uint(b)
	if size == 0 || size > maxName {
		return fmt.Errorf("a client has a name of %d bytes, at %v", size, at)
	}
	name, err := w.k.Bytes(w.data.Pointer(b), int(size))
	if err == nil && !visit(Client{Name: append([]byte(nil), name...), Expected: expected}) {
		err = errEnough
	}
	return err
}

func unlessEnough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

var errEnough = errors.New("the caller wants no more")

// server returns the address of nfsd's part of the first network namespace, of size bytes. Its number among the parts
// of a namespace is in nfsd's struct pernet_operations, which is found by that size (include/net/netns/generic.h,
// net_generic).
func (w *walk) server(size int) (addr.Virt, error) {
	t := w.k.Types()
	ops, net, generic := t.Layout("pernet_operations"), t.Layout("net"), t.Layout("net_generic")
	list, id, bytes := ops.Field("list", 16), ops.Field("id", 8), ops.Field("size", 8)
	gen, count := net.Field("gen", 8), generic.Field("s.len", 4)
	if err := errors.Join(ops.Err(), net.Err(), generic.Err()); err != nil {
		return 0, err
	}
	head, err := w.k.Symbol("pernet_list")
	if err != nil {
		return 0, err
	}
	var ids []addr.Virt
	err = w.k.List(head, maxPernet, func(at addr.Virt) error {
		b, err := w.k.Bytes(at-addr.Virt(list.Off), ops.Size)
		if err == nil && bytes.Uint(b) == uint64(size) && id.Pointer(b) != 0 {
			ids = append(ids, id.Pointer(b))
		}
		return err
	})
	if err == nil && len(ids) != 1 {
		err = fmt.Errorf("%d pernet_operations have the size of nfsd's, instead of one", len(ids))
	}
	if err != nil {
		return 0, err
	}
	number, err := w.k.U32(ids[0])
	if err != nil {
		return 0, err
	}
	first, err := w.k.Symbol("init_net")
	if err != nil {
		return 0, err
	}
	parts, err := w.k.Pointer(gen.In(first))
	if err != nil {
		return 0, err
	}
	most, err := w.k.U32(count.In(parts))
	if err != nil {
		return 0, err
	}
	if number >= most {
		return 0, fmt.Errorf("nfsd_net_id is %d, but struct net_generic has only %d entries", number, most)
	}
	return w.k.Pointer(parts + 8*addr.Virt(number)) // the union's other member is an array of pointers
}
