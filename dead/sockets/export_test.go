package sockets

import "understudy.dev/understudy/dead/kernel"

// KnowsHash reports whether the whole hash of connections can be checked.
func KnowsHash(k *kernel.Kernel) bool {
	l, err := newSockLayout(k)
	if err != nil {
		return false
	}
	r := newReader(k, l)
	r.spaces, _ = readNamespaces(k)
	tables, _ := r.tables()
	found := r.findHashers(tables)
	return found[0].form != nil && found[1].form != nil
}

// Hash3 is the function that computes the hash of IPv4 connections.
func Hash3(a, b, c, key uint32) uint32 { return hash3(a, b, c, key) }
