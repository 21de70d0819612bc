package supervisor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

const (
	// tellLimit is how long the understudy may spend on telling clients: at the default
	// rate, that is enough for as many clients as fit in a message.
	tellLimit = 70 * time.Second
	// answerLimit is how much longer its answer may take.
	answerLimit = 5 * time.Second
)

// nicConfig returns a network identity in the form that an agent gets.
func nicConfig(n *pair.NIC) wire.NIC {
	c := wire.NIC{MAC: n.MAC.String(), Address: n.Address.String()}
	if n.Gateway.IsValid() {
		c.Gateway = n.Gateway.String()
	}
	if n.Address6.IsValid() {
		c.Address6 = n.Address6.String()
	}
	if n.Gateway6.IsValid() {
		c.Gateway6 = n.Gateway6.String()
	}
	for _, r := range n.Routes {
		c.Routes = append(c.Routes, wire.Route{To: r.To.String(), Via: r.Via.String()})
	}
	return c
}

// notice returns the pair's policy for a takeover; zero without a network.
func notice(p *pair.Pair) takeover.Notice {
	if len(p.NICs) == 0 {
		return takeover.Notice{}
	}
	var ours []netip.Addr
	for _, n := range p.NICs {
		ours = append(ours, n.Address.Addr())
		if n.Address6.IsValid() {
			ours = append(ours, n.Address6.Addr())
		}
	}
	policy := p.Takeover.Notify
	return takeover.Notice{
		Rate: p.Takeover.NotifyRate,
		Of: func(local netip.AddrPort) bool {
			return slices.Contains(ours, local.Addr()) && (policy.All || slices.Contains(policy.Ports, int(local.Port())))
		},
	}
}

// witness returns the morgue, or nil if the pair has no network on which the dead side could have peers.
func (s *Supervisor) witness() takeover.Witness {
	if s.morgue == nil || len(s.Pair.NICs) == 0 {
		return nil
	}
	return s.morgue
}

func (m *machine) Acquaint(ctx context.Context, p wire.Peers) (result wire.AcquaintResult, err error) {
	r, err := wire.NewAcquaintRequest(p)
	if err != nil {
		return result, err
	}
	return result, m.heir.agent.Call(ctx, wire.Acquaint, r, &result)
}

func (m *machine) Announce(ctx context.Context) error { return m.s.announce(ctx, m.heir) }

func (m *machine) Tell(ctx context.Context, rate int) (result wire.TellResult, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, tellLimit+answerLimit, fmt.Errorf("no answer within %v", tellLimit+answerLimit))
	defer cancel()
	return result, m.heir.agent.Call(ctx, wire.Tell, wire.TellRequest{Rate: rate, Limit: tellLimit}, &result)
}

// announce makes a side announce its addresses.
func (s *Supervisor) announce(ctx context.Context, sd *side) error {
	if len(s.Pair.NICs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerLimit, fmt.Errorf("no answer within %v", answerLimit))
	defer cancel()
	return sd.agent.Call(ctx, wire.Announce, nil, nil)
}
