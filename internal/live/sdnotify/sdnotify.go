// Package sdnotify tells a service manager how this process is (sd_notify(3)), if one wants
// to know; it does nothing if none does.
package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// What may be sent, as sd_notify(3) has it.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Watchdog = "WATCHDOG=1"
)

// Status is a line for people, which systemctl status shows.
func Status(s string) string { return "STATUS=" + strings.ReplaceAll(s, "\n", "; ") }

// Notifier is the connection to a service manager; nil: there is none.
type Notifier struct {
	conn  *net.UnixConn
	every time.Duration
}

// Open finds the service manager in the environment, and takes its variables out of there,
// so that no program that is started believes that they are for it.
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
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"}) // "@" is an abstract one to Go, too
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

// Every is how often the manager wants to hear Watchdog; 0: never.
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
