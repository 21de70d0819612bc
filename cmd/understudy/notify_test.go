package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/netlab"
	"understudy.dev/understudy/internal/lab/tier"
)

// The pair's network identity and the client beside it.
const (
	pairMAC  = "525400756401"
	pair4    = "10.77.0.2"
	pair6    = "fd00::2"
	clients4 = "10.77.0.1/24"
	clients6 = "fd00::1/64"
)

// networkPair brings a pair up that echoes on port 7 at both addresses, in its own lab, and
// returns the lab. policy is the takeover policy.
func networkPair(t *testing.T, policy string) *netlab.Lab {
	t.Helper()
	lab, err := netlab.NewLab(netip.MustParsePrefix(clients4), netip.MustParsePrefix(clients6))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	file := pairFile(t, "services:\n", `nics:
  - name: lan
    mac: "52:54:00:75:64:01"
    address: 10.77.0.2/24
    gateway: 10.77.0.1
    address6: fd00::2/64
    gateway6: fd00::1
    routes: [{to: 10.88.0.0/16, via: 10.77.0.9}, {to: "fd88::/32", via: "fe80::9"}]
    bridge: br0
takeover: {`+policy+`}
services:
  - {name: echo, command: [busybox, nc, -ll, -p, "7", -e, cat], ready: 7}
`)
	// The program finds the bridge in what it takes for the host's own network.
	if err := lab.Services.Do(func() error { _, err := understudy(t, "up", "-d", "-f", file); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(binary, "down").CombinedOutput(); err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	return lab
}

// client is a connection to the pair's echo service, with when and how it ended.
type client struct {
	conn  net.Conn
	ended chan struct{}
	at    time.Time
	err   error
	sent  atomic.Int64 // writes
}

// newClient connects, and checks that it is answered. Then it sends nothing more or, if it
// is busy, sends all the time.
func newClient(t *testing.T, lab *netlab.Lab, address string, busy bool) *client {
	t.Helper()
	conn, err := lab.Client.DialContext(t.Context(), "tcp", net.JoinHostPort(address, "7"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprint(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	c := &client{conn: conn, ended: make(chan struct{})}
	// The kernel reports an error once, to the next read or write.
	var once sync.Once
	end := func(err error) {
		if err != nil {
			once.Do(func() {
				c.at, c.err = time.Now(), err
				close(c.ended)
			})
		}
	}
	go func() {
		_, err := io.Copy(io.Discard, conn)
		end(err)
	}()
	if busy {
		go func() {
			var err error
			for ; err == nil; time.Sleep(2 * time.Millisecond) {
				_, err = conn.Write(make([]byte, 1000))
				c.sent.Add(1)
			}
			end(err)
		}()
	}
	return c
}

// frame is a frame that passed the client's end of its cable.
type frame struct {
	at    time.Time
	bytes []byte
}

// capture is what arrives at the client, from now on.
type capture struct {
	mu     sync.Mutex
	frames []frame
}

func newCapture(t *testing.T, lab *netlab.Lab) *capture {
	t.Helper()
	var fd int
	err := lab.Client.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL << 8 // in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(int64(50 * time.Millisecond))
		return errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &capture{}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		buffer := make([]byte, 65536)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if n, _, err := unix.Recvfrom(fd, buffer, 0); err == nil {
				c.mu.Lock()
				c.frames = append(c.frames, frame{time.Now(), bytes.Clone(buffer[:n])})
				c.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		unix.Close(fd)
	})
	return c
}

// count is how many frames with these bytes came after some time.
func (c *capture) count(after time.Time, want string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.frames {
		if f.at.After(after) && strings.HasPrefix(hex.EncodeToString(f.bytes), strings.ReplaceAll(want, " ", "")) {
			n++
		}
	}
	return n
}

// crashPair panics the active kernel, waits for the takeover, and returns what
// there is to say of it, when its address was live and when all were told.
func crashPair(t *testing.T) (_ *lastTakeover, live, told time.Time) {
	t.Helper()
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	st := awaitTakeover(t)
	end := make(map[string]float64)
	for _, s := range st.Takeover.Steps {
		end[s.Name] = s.End
	}
	at := func(step string) time.Time {
		return st.Takeover.At.Add(time.Duration((end[step] - end["detect"]) * float64(time.Millisecond)))
	}
	return st.Takeover, at("address"), at("notify")
}

// tellingLimit is how long telling a handful of clients may take: on a quiet machine
// some 20 ms, on a busy one as long as the outage that it made.
func tellingLimit(crashed, live time.Time) time.Duration {
	return max(300*time.Millisecond, live.Sub(crashed))
}

// clockError is how far times of two processes may be apart.
const clockError = 20 * time.Millisecond

// TestClientsAreTold: connections to the dead side, idle and busy, of both
// families, end by a reset soon after the address is live, and the network hears
// where that is.
func TestClientsAreTold(t *testing.T) {
	vm(t)
	lab := networkPair(t, "notify: all")
	captured := newCapture(t, lab)
	clients := map[string]*client{}
	for _, address := range []string{pair4, pair6} {
		clients["idle to "+address] = newClient(t, lab, address, false)
		clients["busy to "+address] = newClient(t, lab, address, true)
	}
	for _, address := range []string{pair4, pair6} { // which takes time enough for the others to be idle
		busy := clients["busy to "+address]
		await(t, "busy client", programLimit, func() bool { return busy.sent.Load() >= 100 })
	}
	crashed := time.Now()
	report, live, told := crashPair(t)
	limit := tellingLimit(crashed, live)
	if took := told.Sub(live); took > limit {
		t.Errorf("it took %v to tell", took)
	}
	for name, c := range clients {
		select {
		case <-c.ended:
		case <-time.After(time.Minute):
			t.Errorf("%s: not told", name)
			continue
		}
		after := c.at.Sub(live)
		t.Logf("%s: %v, %v after the address was live", name, c.err, after)
		if !errors.Is(c.err, syscall.ECONNRESET) || c.at.Sub(told) > limit {
			t.Errorf("%s: ended by %v, %v after the address was live", name, c.err, after)
		}
		if after < -clockError {
			t.Errorf("%s: told %v before the address was live", name, -after)
		}
	}
	n := report.Notified
	if n.Reset+n.Tickled != 4 || n.Reset < 2 || n.Untold != 0 || len(n.Failures) > 0 || n.Neighbours < 2 {
		t.Errorf("report: %+v", n)
	}
	time.Sleep(1200 * time.Millisecond) // the repetitions
	a4, a6 := hex.EncodeToString(net.ParseIP(pair4).To4()), hex.EncodeToString(net.ParseIP(pair6))
	for name, want := range map[string]string{
		"ARP request":   "ffffffffffff" + pairMAC + "0806 0001 0800 06 04 0001" + pairMAC + a4 + "000000000000" + a4,
		"ARP reply":     "ffffffffffff" + pairMAC + "0806 0001 0800 06 04 0002" + pairMAC + a4 + pairMAC + a4,
		"advertisement": "333300000001" + pairMAC + "86dd 60000000 0020 3a ff" + a6 + "ff02" + strings.Repeat("0", 26) + "01" + "88 00",
	} {
		got := 0
		await(t, "fourth "+name, time.Minute, func() bool {
			got = captured.count(live.Add(-clockError), want)
			return got >= 4
		})
		if got != 4 {
			t.Errorf("%s: %d of 4 arrived", name, got)
		}
	}
	// The same connections work again, and at once: nothing is left of the old ones.
	for _, address := range []string{pair4, pair6} {
		newClient(t, lab, address, false)
	}
}

// TestClientsAreNotTold: whose clients are not to be told keep their connections,
// as long as they say nothing.
func TestClientsAreNotTold(t *testing.T) {
	for _, policy := range []string{"notify: none", "notify: [80]"} {
		t.Run(policy, func(t *testing.T) {
			tier.Full(t, policy)
			vm(t)
			lab := networkPair(t, policy)
			idle := newClient(t, lab, pair4, false)
			report, live, _ := crashPair(t)
			select {
			case <-idle.ended:
				t.Errorf("ended by %v", idle.err)
			case <-time.After(time.Until(live.Add(2 * time.Second))):
			}
			if n := report.Notified; n.Reset+n.Tickled+n.Untold != 0 || len(n.Failures) > 0 || n.Neighbours == 0 {
				t.Errorf("report: %+v", n)
			}
		})
	}
}
