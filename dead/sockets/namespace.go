package sockets

import (
	"errors"
	"fmt"

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

// readNamespaces walks net_namespace_list (net/core/net_namespace.c). What it finds
// before an error is good.
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
	before := head
	at, err := k.Pointer(head)
	for err == nil && at != head {
		if len(found) == maxNamespaces {
			return found, errors.New("list of network namespaces is too long, or circular")
		}
		net := at - addr.Virt(list.Off)
		var b []byte
		if b, err = k.Bytes(net, l.Size); err != nil {
			break
		}
		// Each has only one before it: that rules out any other cycle.
		links := kernel.Field{Off: list.Off, Size: 8}
		back := kernel.Field{Off: list.Off + 8, Size: 8}.Pointer(b)
		if back != before {
			return found, fmt.Errorf("%v points back to %v, not %v", at, back, before)
		}
		found[net] = namespace{uint32(inode.Uint(b)), uint32(mix.Uint(b)), info.Pointer(b)}
		before, at = at, links.Pointer(b)
	}
	return found, err
}
