package supervisor

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
)

// TestAgentRestarted: a call that an agent had when it was started again has no answer, and ends.
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
		_ = agent.Notify(wire.Hello, wire.Greeting{Release: "1"}) // or the side says so
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
