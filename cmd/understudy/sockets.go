package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/sockets"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// socketList is the output of sockets.
type socketList struct {
	Kernel      string           `json:"kernel"`
	Without     string           `json:"without,omitempty"` // what the kernel was built without, so that there are no connections
	Connections []connectionInfo `json:"connections"`
	Neighbours  []neighbourInfo  `json:"neighbours"`
	Refused     []string         `json:"refused"`
}

type connectionInfo struct {
	State     sockets.State  `json:"state"`
	Local     netip.AddrPort `json:"local"`
	Remote    netip.AddrPort `json:"remote"`
	SndUna    uint32         `json:"snd_una"`
	SndNxt    uint32         `json:"snd_nxt"`
	RcvNxt    uint32         `json:"rcv_nxt"`
	RecvQueue uint32         `json:"recv_queue"` // bytes received and not read
	SendQueue uint32         `json:"send_queue"` // bytes written and not acknowledged
	Exact     bool           `json:"exact"`
	Unsure    bool           `json:"unsure,omitempty"`
	Bound     uint32         `json:"interface_index,omitempty"`
	Namespace uint32         `json:"namespace"`
}

type neighbourInfo struct {
	Address   netip.Addr `json:"address"`
	Interface string     `json:"interface"`
	MAC       string     `json:"mac"`
	Permanent bool       `json:"permanent,omitempty"`
	Router    bool       `json:"router,omitempty"`
	Namespace uint32     `json:"namespace"`
}

func socketsCommand() *cobra.Command {
	var asJSON, neighbours bool
	cmd := &cobra.Command{
		Use:   "sockets IMAGE...",
		Short: "List the TCP connections that a dead kernel had, and the neighbours it knew",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := listSockets(args)
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				err = writeJSON(cmd.OutOrStdout(), l)
			case neighbours:
				err = l.writeNeighbours(cmd.OutOrStdout())
			default:
				err = l.writeConnections(cmd.OutOrStdout())
			}
			return errors.Join(err, l.verdict())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print for programs, all of it")
	cmd.Flags().BoolVar(&neighbours, "neighbours", false, "list the neighbours instead")
	return cmd
}

func listSockets(paths []string) (*socketList, error) {
	mem, err := ram.OpenFiles(paths...)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	k, err := kernel.Find(mem, morgue.Builds()...)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", paths[0], err)
	}
	defer func() { _ = k.Keep() }() // if this fails, it is learned again
	l := &socketList{Kernel: k.Release, Without: sockets.Without(k), Connections: []connectionInfo{}, Neighbours: []neighbourInfo{}, Refused: []string{}}
	for c, err := range sockets.Connections(k) {
		if err != nil {
			l.Refused = append(l.Refused, err.Error())
			continue
		}
		l.Connections = append(l.Connections, connectionInfo{
			State: c.State, Local: c.Local, Remote: c.Remote, SndUna: c.SndUna, SndNxt: c.SndNxt, RcvNxt: c.RcvNxt,
			RecvQueue: c.RcvNxt - c.CopiedSeq, SendQueue: c.WriteSeq - c.SndUna, Exact: c.Exact(), Unsure: c.Unsure,
			Bound: c.Bound, Namespace: c.Namespace,
		})
	}
	for n, err := range sockets.Neighbours(k) {
		if err != nil {
			l.Refused = append(l.Refused, err.Error())
			continue
		}
		l.Neighbours = append(l.Neighbours, neighbourInfo{
			Address: n.Address, Interface: n.Interface, MAC: net.HardwareAddr(n.MAC[:]).String(),
			Permanent: n.Permanent, Router: n.Router, Namespace: n.Namespace,
		})
	}
	return l, nil
}

// verdict returns nil if everything in memory was taken.
func (l *socketList) verdict() error {
	if len(l.Refused) == 0 {
		return nil
	}
	return &incomplete{what: firstRefusals(l.Refused, len(l.Refused), "--json tells all")}
}

// writeConnections prints connections as ss -tn would, with what the peer expects
// next.
func (l *socketList) writeConnections(w io.Writer) error {
	out := bufio.NewWriter(w)
	rows := [][]string{{"STATE", "RECV-Q", "SEND-Q", "LOCAL", "PEER", "NEXT", "EXACT", "NAMESPACE"}}
	established, exact := 0, 0
	for _, c := range l.Connections {
		word := "no"
		switch {
		case c.Exact:
			exact++
			word = "yes"
		case c.Unsure:
			word = "unsure"
		}
		if c.State == sockets.Established {
			established++
		}
		rows = append(rows, []string{c.State.String(), number(c.RecvQueue), number(c.SendQueue), c.Local.String(), c.Remote.String(),
			number(c.SndNxt), word, number(c.Namespace)})
	}
	if len(l.Connections) > 0 {
		columns(out, rows, "lrrllrll")
	}
	fmt.Fprintf(out, "%s, %d established, %d exact%s\n", plural(len(l.Connections), "connection"), established, exact, l.why())
	return out.Flush()
}

// writeNeighbours prints neighbours as ip neighbour would.
func (l *socketList) writeNeighbours(w io.Writer) error {
	out := bufio.NewWriter(w)
	rows := [][]string{{"ADDRESS", "INTERFACE", "MAC", "KIND", "NAMESPACE"}}
	for _, n := range l.Neighbours {
		kind := "learned"
		if n.Permanent {
			kind = "permanent"
		}
		if n.Router {
			kind += " router"
		}
		rows = append(rows, []string{n.Address.String(), inventory.Printable(n.Interface), n.MAC, kind, number(n.Namespace)})
	}
	if len(l.Neighbours) > 0 {
		columns(out, rows, "lllll")
	}
	fmt.Fprintf(out, "%s%s\n", plural(len(l.Neighbours), "neighbour"), l.why())
	return out.Flush()
}

// why says why there are none, if that is known.
func (l *socketList) why() string {
	if l.Without == "" {
		return ""
	}
	return ": this kernel was built without " + l.Without
}
