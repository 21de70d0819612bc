package sockets

import (
	"errors"

	"understudy.dev/understudy/dead/kernel"
)

// parts are what a kernel must be built with to have connections and neighbours. Any of a part's symbols proves
// that it was: of code and of data, because a kernel may keep no symbols of data (CONFIG_KALLSYMS_ALL).
var parts = []struct {
	name    string
	symbols []string
}{
	{"a network", []string{"net_namespace_list", "init_net", "__sock_create", "sock_release"}}, // CONFIG_NET
	{"TCP", []string{"tcp_hashinfo", "tcp_v4_rcv", "tcp_sendmsg", "arp_tbl", "arp_rcv"}},       // CONFIG_INET
}

// Without returns what a kernel was built without, "a network" or "TCP", so that it has neither connections
// nor neighbours. It is empty for a kernel that may have some.
func Without(k *kernel.Kernel) string {
	for _, p := range parts {
		absent := 0
		for _, s := range p.symbols {
			if _, err := k.Symbol(s); errors.Is(err, kernel.ErrNotFound) {
				absent++
			}
		}
		if absent == len(p.symbols) {
			return p.name
		}
	}
	return ""
}
