// Package sdnotify reports the state of this process to a service manager (sd_notify(3)), if one
// asks for that; otherwise it does nothing.
package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// States that may be sent, as in sd_notify(3).
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Watchdog = "WATCHDOG=1"
)

// Status is a line for people, which systemctl status shows.
func Status(s string) string { return "STATUS=" + strings.ReplaceAll(s, "\n", "; ") }

// Notifier is the connection to a service manager; a nil Notifier means that there is none.
type Notifier struct {
	conn  *net.UnixConn
	every time.Duration
}

// Open finds the service manager in the environment, and removes its variables from there,
// so that no program that we start takes them for its own.
func Open() (*Notifier, error) {
	path, limit, of := os.Getenv("NOTIFY_SOCKET"), os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if path == "" {
		return nil, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}) // for Go, too, "@" means an abstract socket
	if err != nil {
		return nil, fmt.Errorf("reach the service manager: %w", err)
	}
	n := &Notifier{conn: conn}
	if us, err := strconv.ParseInt(limit, 10, 64); err == nil && us > 0 && (of == "" || of == strconv.Itoa(os.Getpid())) {
		n.every = time.Duration(us) * time.Microsecond / 2 // sd_watchdog_enabled(3): half of it
	}
	return n, nil
}

// Tell sends a state, or several.
func (n *Notifier) Tell(states ...string) error {
	if n == nil {
		return nil
	}
	if _, err := n.conn.Write([]byte(strings.Join(states, "\n"))); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// Every is how often the manager expects Watchdog; 0 means never.
func (n *Notifier) Every() time.Duration {
	if n == nil {
		return 0
	}
	return n.every
}

// Close ends the connection.
func (n *Notifier) Close() error {
	if n == nil {
		return nil
	}
	return n.conn.Close()
}
