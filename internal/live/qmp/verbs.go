package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// Names of the events that we act on.
const (
	EventGuestPanicked = "GUEST_PANICKED"
	EventShutdown      = "SHUTDOWN"
	EventReset         = "RESET"
	EventStop          = "STOP"
	EventResume        = "RESUME"
	EventDeviceDeleted = "DEVICE_DELETED"
	EventBlockIOError  = "BLOCK_IO_ERROR"
)

// CPU is one virtual processor.
type CPU struct {
	Index    int    `json:"cpu-index"`
	ThreadID int    `json:"thread-id"` // the host's thread that runs it
	QOMPath  string `json:"qom-path"`
}

// QueryCPUs returns the virtual processors and their threads, without
// stopping them (query-cpus-fast).
func (c *Client) QueryCPUs(ctx context.Context) ([]CPU, error) {
	var cpus []CPU
	err := c.Execute(ctx, "query-cpus-fast", nil, &cpus)
	return cpus, err
}

// Status is the run state of the machine.
type Status struct {
	Running bool   `json:"running"`
	Status  string `json:"status"` // "running", "paused", "prelaunch", "guest-panicked", ...
}

// QueryStatus returns the run state.
func (c *Client) QueryStatus(ctx context.Context) (Status, error) {
	var s Status
	err := c.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// Stop stops the virtual processors. It waits for disk requests under way and
// flushes: 75 to 85 ms with dirty disks.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Cont lets the virtual processors run.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// SystemReset presses the reset button.
func (c *Client) SystemReset(ctx context.Context) error {
	return c.Execute(ctx, "system_reset", nil, nil)
}

// Quit makes the process flush its disks and exit. It does not wait for the
// exit. That the connection ends before the answer came is no error.
func (c *Client) Quit(ctx context.Context) error {
	err := c.Execute(ctx, "quit", nil, nil)
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// BlockdevAdd makes a block node. options is a BlockdevOptions, with at least
// "driver" and "node-name".
func (c *Client) BlockdevAdd(ctx context.Context, options any) error {
	return c.Execute(ctx, "blockdev-add", options, nil)
}

// BlockdevDel removes a block node that nothing uses.
func (c *Client) BlockdevDel(ctx context.Context, node string) error {
	return c.Execute(ctx, "blockdev-del", map[string]any{"node-name": node}, nil)
}

// QOMSet sets a property of the object at a path like
// "/machine/peripheral/ID".
func (c *Client) QOMSet(ctx context.Context, path, property string, value any) error {
	return c.Execute(ctx, "qom-set", map[string]any{"path": path, "property": property, "value": value}, nil)
}

// QOMGet stores a property of the object at path in value.
func (c *Client) QOMGet(ctx context.Context, path, property string, value any) error {
	return c.Execute(ctx, "qom-get", map[string]any{"path": path, "property": property}, value)
}

// BlockNode is one node of the block graph.
type BlockNode struct {
	NodeName string `json:"node-name"`
	Driver   string `json:"drv"`
	File     string `json:"file"`
	ReadOnly bool   `json:"ro"`
	Image    struct {
		VirtualSize int64 `json:"virtual-size"` // bytes
	} `json:"image"`
}

// QueryBlockNodes returns all block nodes, without their backing chains
// (query-named-block-nodes, flat).
func (c *Client) QueryBlockNodes(ctx context.Context) ([]BlockNode, error) {
	var nodes []BlockNode
	err := c.Execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes)
	return nodes, err
}

// BlockStats counts the requests to one block device or node.
type BlockStats struct {
	Device   string `json:"device"`    // the back end's old name, often empty
	QDev     string `json:"qdev"`      // path of the guest's device
	NodeName string `json:"node-name"` // the node it uses
	Stats    struct {
		ReadBytes       int64 `json:"rd_bytes"`
		WrittenBytes    int64 `json:"wr_bytes"`
		ReadOperations  int64 `json:"rd_operations"`
		WriteOperations int64 `json:"wr_operations"`
		FlushOperations int64 `json:"flush_operations"`
		WriteHighest    int64 `json:"wr_highest_offset"` // bytes, one after the last byte ever written
	} `json:"stats"`
}

// QueryBlockStats returns the statistics of every block device, or of every
// block node (query-blockstats).
func (c *Client) QueryBlockStats(ctx context.Context, nodes bool) ([]BlockStats, error) {
	var stats []BlockStats
	err := c.Execute(ctx, "query-blockstats", map[string]any{"query-nodes": nodes}, &stats)
	return stats, err
}

// HumanMonitor runs a line of the monitor for people and returns what it
// printed, for what QMP has no command for. Its failures are only text.
func (c *Client) HumanMonitor(ctx context.Context, line string) (string, error) {
	var out string
	err := c.Execute(ctx, "human-monitor-command", map[string]any{"command-line": line}, &out)
	return out, err
}

// GuestPanicked is the data of a GUEST_PANICKED event.
type GuestPanicked struct {
	Action string `json:"action"` // what QEMU did: "pause", "poweroff", "run" (-action panic=none)
}

// DeviceDeleted is the data of a DEVICE_DELETED event: a device is gone from
// the guest.
type DeviceDeleted struct {
	Device string `json:"device"` // its id, if it had one
	Path   string `json:"path"`
}

// Shutdown is the data of a SHUTDOWN event.
type Shutdown struct {
	Guest  bool   `json:"guest"`  // the guest asked for it
	Reason string `json:"reason"` // "guest-shutdown", "host-signal", "guest-panic", ...
}

// BlockIOError is the data of a BLOCK_IO_ERROR event: a request to a disk failed.
type BlockIOError struct {
	Device    string `json:"device"`
	NodeName  string `json:"node-name"`
	Operation string `json:"operation"` // "read" or "write"
	Action    string `json:"action"`    // "report", "ignore" or "stop"
	Reason    string `json:"reason"`
	NoSpace   bool   `json:"nospace"`
}

// Decode stores the event's data in a value, such as one of the types above.
func (e Event) Decode(value any) error {
	if err := json.Unmarshal(e.Data, value); err != nil {
		return fmt.Errorf("decode event %s: %w", e.Name, err)
	}
	return nil
}
