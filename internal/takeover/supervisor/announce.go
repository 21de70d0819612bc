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
	// tellLimit is how long the understudy may go on telling clients: at the
	// default rate enough for as many as a message can have.
	tellLimit = 70 * time.Second
	// answerLimit is how much longer its answer may take.
	answerLimit = 5 * time.Second
)

// nicConfig is a network identity as an agent is told of it.
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

// notice is the pair's policy as a takeover sees it; zero without a network.
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

// witness is the morgue, if the pair has a network for the dead side's peers to be on.
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

// announce has a side say where its addresses are.
func (s *Supervisor) announce(ctx context.Context, sd *side) error {
	if len(s.Pair.NICs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerLimit, fmt.Errorf("no answer within %v", answerLimit))
	defer cancel()
	return sd.agent.Call(ctx, wire.Announce, nil, nil)
}
