package sockets

import (
	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// namespace is a network namespace.
type namespace struct {
	inode    uint32    // net->ns.inum
	hashMix  uint32    // net->hash_mix, part of the key of its hashes
	hashInfo addr.Virt // its struct inet_hashinfo, its own or the common one
}

// maxNamespaces bounds how many network namespaces there are. Each takes more than
// 4 KiB.
const maxNamespaces = 1 << 16

// readNamespaces walks net_namespace_list (net/core/net_namespace.c). What it found
// before an error is valid.
func readNamespaces(k *kernel.Kernel) (map[addr.Virt]namespace, error) {
	l := k.Types().Layout("net")
	list, inode := l.Field("list", 16), l.Field("ns.inum", 4)
	mix := l.Field("hash_mix", 4)
	info := l.Field("ipv4.tcp_death_row.hashinfo", 8)
	if err := l.Err(); err != nil {
		return nil, err
	}
	head, err := k.Symbol("net_namespace_list")
	if err != nil {
		return nil, err
	}
	found := make(map[addr.Virt]namespace)
	err = k.List(head, maxNamespaces, func(at addr.Virt) error {
		net := at - addr.Virt(list.Off)
		b, err := k.Bytes(net, l.Size)
		if err == nil {
			found[net] = namespace{uint32(inode.Uint(b)), uint32(mix.Uint(b)), info.Pointer(b)}
		}
		return err
	})
	return found, err
}
