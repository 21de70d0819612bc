// Package domains asks libvirt about the machines on this host: which of them have crashed, and
// when another one does.
//
// # Caveats
//
// It asks the system's daemon, over its socket on this host, and only about QEMU.
package domains

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"understudy.dev/understudy/internal/live/foreign"
	"understudy.dev/understudy/internal/live/hint"
)

// runDir is where the system's daemon keeps the process number of each domain (libvirt's
// src/util/virpidfile.c).
const runDir = "/run/libvirt/qemu"

// Find finds the QEMU of a domain.
func Find(name string) (*foreign.Machine, error) {
	op := "find domain " + name
	if strings.ContainsRune(name, '/') {
		return nil, hint.New(op, errors.New("that is no name"), "virsh list --all has the names.")
	}
	b, err := os.ReadFile(filepath.Join(runDir, name+".pid"))
	if err != nil {
		return nil, hint.New(op, err, "It must be there still: crashed with <on_crash>preserve</on_crash>, paused or running (virsh list --all).")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	found, err := foreign.Open(pid)
	if err == nil && found.Name != name {
		err = errors.Join(hint.New(op, fmt.Errorf("process %d runs %q", pid, found.Name), "It has ended, and its PID is another process's now."), found.Close())
	}
	return found, err
}

// Domain is one of libvirt's machines.
type Domain struct {
	Name string `json:"name"`
	UUID string `json:"uuid"`
	Run  int32  `json:"run"` // libvirt's ID of this run, counted since libvirtd started
	// XML is the description of a transient domain. It is empty if libvirt has the description.
	XML string `json:"xml,omitempty"`
}

// Sockets are the sockets where libvirt may answer, of which the first that does is used: that of the
// daemon for QEMU alone, and that of the daemon for everything (libvirt's docs/daemons.rst).
var Sockets = []string{"/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"}

// Connection is a connection to libvirt.
type Connection struct{ l *libvirt.Libvirt }

// dialLimit is how long libvirt may take to accept a connection.
const dialLimit = 10 * time.Second

// dialer connects to a socket, or, if it is empty, to the first of Sockets that answers.
type dialer string

// Dial implements socket.Dialer of go-libvirt.
func (d dialer) Dial() (net.Conn, error) {
	all := Sockets
	if d != "" {
		all = []string{string(d)}
	}
	var errs []error
	for _, path := range all {
		c, err := net.DialTimeout("unix", path, dialLimit)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Dial connects to libvirt at a socket, or, if that is empty, at the first of Sockets that answers.
func Dial(socket string) (*Connection, error) {
	c := &Connection{l: libvirt.NewWithDialer(dialer(socket))}
	if err := c.l.Connect(); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, hint.New("reach libvirt", err, "This needs the rights of root.")
		}
		return nil, hint.New("reach libvirt", err, "It must run on this machine: systemctl status virtqemud libvirtd")
	}
	return c, nil
}

// Close ends the connection.
func (c *Connection) Close() error {
	if !c.l.IsConnected() {
		return nil
	}
	return c.l.Disconnect()
}

// Word returns a channel that gets something each time that domains may have crashed, and that is
// closed when the connection has ended. A caller that calls Crashed after Word has returned, and again
// for each value, misses no crash.
func (c *Connection) Word(ctx context.Context) (<-chan struct{}, error) {
	all, err := c.l.LifecycleEvents(ctx)
	if err != nil {
		return nil, fmt.Errorf("subscribe to libvirt's lifecycle events: %w", err)
	}
	word := make(chan struct{}, 1)
	go func() {
		defer close(word)
		for e := range all { // until it is closed: the sender blocks otherwise
			if libvirt.DomainEventType(e.Event) != libvirt.DomainEventCrashed {
				continue
			}
			select {
			case word <- struct{}{}:
			default: // there is something in it already
			}
		}
	}()
	return word, nil
}

// all are the domains that flags select.
func (c *Connection) all(flags libvirt.ConnectListAllDomainsFlags) ([]libvirt.Domain, error) {
	all, _, err := c.l.ConnectListAllDomains(1, flags)
	if err != nil {
		return nil, fmt.Errorf("list domains: %w", err)
	}
	return all, nil
}

// Crashed are the domains whose kernel has panicked, and whose QEMU still exists.
func (c *Connection) Crashed() ([]Domain, error) {
	active, err := c.all(libvirt.ConnectListDomainsActive)
	if err != nil {
		return nil, err
	}
	var out []Domain
	for _, d := range active {
		state, reason, err := c.l.DomainGetState(d, 0)
		if libvirt.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at domain %s: %w", d.Name, err)
		}
		if libvirt.DomainState(state) != libvirt.DomainCrashed || libvirt.DomainCrashedReason(reason) != libvirt.DomainCrashedPanicked {
			continue
		}
		found := Domain{Name: d.Name, UUID: fmt.Sprintf("%x", d.UUID), Run: d.ID}
		persistent, err := c.l.DomainIsPersistent(d)
		if err == nil && persistent == 0 {
			found.XML, err = c.l.DomainGetXMLDesc(d, libvirt.DomainXMLSecure|libvirt.DomainXMLMigratable)
		}
		if err != nil {
			return nil, fmt.Errorf("look at domain %s: %w", d.Name, err)
		}
		out = append(out, found)
	}
	return out, nil
}

// description is the part of a domain's XML that matters here (libvirt's docs/formatdomain.rst).
type description struct {
	OnCrash string     `xml:"on_crash"`
	Panic   []struct{} `xml:"devices>panic"`
}

// lacks says why a domain's memory would be lost when its kernel dies. It is empty if it would not.
func (d description) lacks() (why []string) {
	if d.OnCrash != "preserve" {
		how := d.OnCrash
		if how == "" {
			how = "destroy" // libvirt's default
		}
		why = append(why, "<on_crash> is "+how+", and not preserve")
	}
	if len(d.Panic) == 0 {
		why = append(why, "it has no <panic> device")
	}
	return why
}

// Unprepared are the domains whose memory libvirt would free when their kernel dies, or whose
// kernel's death it would not hear of, by name, with the reason.
func (c *Connection) Unprepared() (map[string]string, error) {
	all, err := c.all(0)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string)
	for _, d := range all {
		text, err := c.l.DomainGetXMLDesc(d, 0)
		if libvirt.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at domain %s: %w", d.Name, err)
		}
		var what description
		if err := xml.Unmarshal([]byte(text), &what); err != nil {
			return nil, fmt.Errorf("read description of domain %s: %w", d.Name, err)
		}
		if why := what.lacks(); len(why) > 0 {
			out[d.Name] = strings.Join(why, "; ")
		}
	}
	return out, nil
}

// goneLimit is how long libvirt may take to notice that a QEMU has ended.
const goneLimit = 30 * time.Second

// Start starts a domain whose QEMU has ended.
func (c *Connection) Start(ctx context.Context, d Domain) error {
	op := "start domain " + d.Name
	for end := time.Now().Add(goneLimit); ; {
		found, err := c.l.DomainLookupByName(d.Name)
		switch {
		case libvirt.IsNotFound(err) && d.XML != "":
			if _, err = c.l.DomainCreateXML(d.XML, 0); err != nil {
				return fmt.Errorf("%s: %w", op, err)
			}
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", op, err)
		case found.ID == -1: // it does not run
			if err := c.l.DomainCreate(found); err != nil {
				return fmt.Errorf("%s: %w", op, err)
			}
			return nil
		case found.ID != d.Run:
			return fmt.Errorf("%s: it runs already", op)
		case time.Now().After(end):
			return hint.New(op, fmt.Errorf("libvirt still has it as running %v after its QEMU ended", goneLimit), "Its disks are up to date: virsh start "+d.Name)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
