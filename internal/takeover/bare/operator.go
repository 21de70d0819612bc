package bare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// OrderSocket is where the understudy, once it is active, takes orders from programs that run
// on it (package wire). orderReturn is the only order.
const (
	OrderSocket = "/run/understudy/order"
	orderReturn = "return"
)

// serveOperator begins to take orders.
func (m *machine) serveOperator(ctx context.Context) error {
	l, err := net.Listen("unix", OrderSocket)
	if err != nil {
		return err
	}
	if err := os.Chmod(OrderSocket, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				say("take orders: %v", err)
				return
			}
			go func() { _ = wire.New(c, wire.FromCommand, m.order).Serve(ctx) }() // the program has gone
		}
	}()
	return nil
}

// returnOrder is the argument of orderReturn.
type returnOrder struct {
	Discard bool `json:"discard"` // give up what only the dead kernel's memory has
}

func (m *machine) order(ctx context.Context, verb string, text json.RawMessage) (any, error) {
	if verb != orderReturn {
		return nil, fmt.Errorf("no such order: %s", verb)
	}
	var r returnOrder
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, err
	}
	if m.leftover.any() && !r.Discard {
		return nil, fmt.Errorf("what was refused (see %s) may be in the dead kernel's memory only, which a reset loses: copy what there is of it elsewhere, and give up the rest with metal return --discard", ReportFile)
	}
	return nil, m.giveBack(context.WithoutCancel(ctx)) // the program that asked may be one of the services
}

// giveBack stops the services, unmounts the disks, and resets the machine, which boots its
// own kernel then. If a disk stays busy, the services are started again, and nothing has
// changed, except that nothing protects this kernel any more.
func (m *machine) giveBack(ctx context.Context) error {
	m.stopProtecting()
	if err := m.stop(ctx); err != nil {
		for _, d := range m.role.Disks {
			_, mounted := m.Mount(ctx, d.Name, false)
			err = errors.Join(err, mounted)
		}
		m.showExports()
		return errors.Join(err, m.agent.Do(ctx, wire.Start, wire.StartRequest{}, nil))
	}
	return restart()
}

// stop stops the services, and unmounts the disks.
func (m *machine) stop(ctx context.Context) error {
	m.agent.EndServices()
	m.clearOut() // services still had /proc and the like when they ended
	return m.agent.Do(ctx, wire.Stop, nil, nil)
}

// restart resets the machine. It returns only an error.
func restart() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// Return makes the understudy that this program runs on give the machine back to its own
// kernel. With discard, it does so even if only the dead kernel's memory has some of the
// data, which is lost then. It returns only an error.
func Return(ctx context.Context, discard bool) error {
	c, err := net.Dial("unix", OrderSocket)
	if err != nil {
		return fmt.Errorf("no understudy is active here: %w", err)
	}
	conn := wire.New(c, wire.FromControl, nil)
	go func() { _ = conn.Serve(ctx) }() // the call says what is wrong
	return conn.Call(ctx, orderReturn, returnOrder{discard}, nil)
}
