package pair

import (
	_ "embed"
	"fmt"
	"net/netip"
	"path"
	"slices"

	"go.yaml.in/yaml/v3"

	"understudy.dev/understudy/internal/live/events"
)

// Schema is a JSON Schema (draft 2020-12) of the file, for editors: it has every key, what
// it is for, and what its values look like. Only Load checks values against each other.
//
//go:embed schema.json
var Schema []byte

const (
	metricsHint = "write the address and port to listen on, e.g. 127.0.0.1:9752"
	hookHint    = "write the whole path of a program first, e.g. [/usr/local/bin/page, oncall]"
)

// parseListen reads the address at which metrics are served.
func parseListen(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address with a port", s)
	}
	return a, nil
}

func (r *reader) hook(node *yaml.Node, key string) {
	var h events.Hook
	var on []string
	r.mapping(node, key, r.command(&h.Command, hookHint), field{"on", false, func(node *yaml.Node, key string) {
		r.sequence(node, key, func(node *yaml.Node, key string) {
			if kind, ok := r.scalar(node, key, false); ok {
				on = append(on, kind)
				r.kind(node, key, kind)
			}
		})
		if node.Kind == yaml.SequenceNode && len(node.Content) == 0 {
			r.refuse(node, key, "name some, or remove the key to have all", "names no event")
		}
	}})
	for _, kind := range on {
		h.On = append(h.On, events.Kind(kind))
	}
	if len(h.Command) > 0 && !path.IsAbs(h.Command[0]) {
		r.refuse(node, join(key, "command"), hookHint, "%q is not the whole path of a program", h.Command[0])
	}
	r.pair.Hooks = append(r.pair.Hooks, h)
}

func (r *reader) kind(node *yaml.Node, key, kind string) {
	if !slices.Contains(events.Kinds, events.Kind(kind)) {
		r.refuse(node, key, fmt.Sprintf("use some of %v", events.Kinds), "%q is no event", kind)
	}
}
