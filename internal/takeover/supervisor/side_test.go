package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/netns"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
)

// TestBridgeKeepsAddress checks that a bridge without an address of its own has the same address
// before and after a takeover, whether it has another port or not.
func TestBridgeKeepsAddress(t *testing.T) {
	for name, other := range map[string]string{"alone": "", "beside another port": "peer"} {
		t.Run(name, func(t *testing.T) {
			n, err := netns.New()
			if err != nil {
				tier.Lacks(t, err)
			}
			defer n.Close()
			if err := n.Bridge("br0"); err != nil {
				t.Fatal(err)
			}
			if other != "" {
				peer, err := netns.New()
				if err != nil {
					t.Fatal(err)
				}
				defer peer.Close()
				if err := errors.Join(n.Veth(other, peer, "eth0"), n.Enslave(other, "br0")); err != nil {
					t.Fatal(err)
				}
			}
			s := &Supervisor{Pair: &pair.Pair{Name: "web", NICs: []pair.NIC{{Name: "lan", Bridge: "br0"}}}, options: Options{Network: n}}
			var was string
			for i := range s.Pair.Partitions {
				sd := &side{index: i}
				if _, err := s.devices(t.Context(), sd, i, true); err != nil {
					tier.Lacks(t, err)
				}
				if _, err := s.connect(sd); err != nil {
					t.Fatal(err)
				}
				is := addressOf(t, n, "br0")
				if i > 0 && is != was {
					t.Errorf("it was %s, and is %s", was, is)
				}
				was = is
				if err := sd.dropTaps(); err != nil { // as if its QEMU had died
					t.Fatal(err)
				}
			}
		})
	}
}

func addressOf(t *testing.T, n *netns.Namespace, link string) (address string) {
	t.Helper()
	err := n.Do(func() error {
		i, err := net.InterfaceByName(link)
		if err == nil {
			address = i.HardwareAddr.String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// TestAgentRestarted checks that a call that was in flight when the agent was restarted ends without an answer.
func TestAgentRestarted(t *testing.T) {
	spec := partition.Spec{Name: "p", Dir: t.TempDir()}
	l, err := net.Listen("unix", spec.AgentPath())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked, agents := make(chan bool, 1), make(chan *wire.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		agent := wire.New(c, wire.FromSupervisor, func(ctx context.Context, _ string, _ json.RawMessage) (any, error) {
			asked <- true
			<-ctx.Done()
			return nil, nil
		})
		go agent.Serve(ctx)
		_ = agent.Notify(wire.Hello, wire.Greeting{Release: "1"}) // if this fails, so does meet
		agents <- agent
	}()
	sd := &side{name: "p", process: &partition.Process{Spec: spec}}
	if err := sd.meet(ctx, nil, time.Minute); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sd.agent.Call(ctx, wire.Apply, nil, nil) }()
	<-asked
	if err := (<-agents).Notify(wire.Hello, wire.Greeting{Release: "1"}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), errRestarted.Error()) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the call still waits")
	}
}
