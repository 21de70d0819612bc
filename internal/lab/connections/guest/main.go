//go:build linux

// Command guest is PID 1 of the guests of package connections.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/connections/truth"
	"understudy.dev/understudy/internal/lab/fixture/boot"
)

func main() {
	switch err := run(); {
	case errors.Is(err, errNotHeld):
		fmt.Println(truth.NotHeld + err.Error())
	case err != nil:
		fmt.Println(truth.Failed + err.Error())
	}
	for {
		time.Sleep(time.Hour)
	}
}

// sysctls make unanswered connections wait for an answer for hours.
var sysctls = map[string]string{
	"kernel/sysrq": "1", "net/ipv4/tcp_syn_retries": "127", "net/ipv4/tcp_synack_retries": "255", "net/ipv4/tcp_retries2": "255",
}

// errNotHeld means that sockets that tests rely on are gone.
var errNotHeld = errors.New("too few sockets are left")

func run() error {
	if err := boot.SetUp(sysctls); err != nil {
		return err
	}
	b, err := os.ReadFile(truth.OrderPath)
	if err != nil {
		return err
	}
	var order truth.Order
	if err := json.Unmarshal(b, &order); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 17, Max: 1 << 17}); err != nil {
		return err
	}
	b1, err := newBoard()
	if err != nil {
		return fmt.Errorf("make networks: %w", err)
	}
	if err := b1.connectAll(order.Pairs); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := b1.settled(); err != nil {
		return err
	}
	if err := b1.closeSome(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	all, err := b1.settled()
	if err != nil {
		return fmt.Errorf("tell the truth: %w", err)
	}
	if all.TimeWait < waiting {
		return fmt.Errorf("%w: %d of %d in TIME_WAIT", errNotHeld, all.TimeWait, waiting)
	}
	if err := tell(all); err != nil {
		return fmt.Errorf("write the truth: %w", err)
	}
	return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}

// settled waits until nothing changes any more: acknowledgements are delayed.
func (b *board) settled() (*truth.Truth, error) {
	before, err := b.truth()
	for range 300 {
		if err != nil {
			return nil, err
		}
		time.Sleep(200 * time.Millisecond)
		var now *truth.Truth
		if now, err = b.truth(); err == nil && reflect.DeepEqual(before, now) {
			return now, nil
		}
		before = now
	}
	return nil, errors.New("it does not settle")
}

func tell(all *truth.Truth) error {
	device, err := boot.FindDisk(truth.Disk)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(f).Encode(all); err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
