package qmp

import (
	"context"
	"errors"
)

// Names of the events that we act on.
const (
	// EventGuestPanicked comes from a kernel that panicked, and EventGuestCrashloaded from
	// one that is about to run its crash kernel (kdump) instead. QEMU stops the machine
	// at the first one if it is told to (-action panic=pause), and never at the second.
	EventGuestPanicked    = "GUEST_PANICKED"
	EventGuestCrashloaded = "GUEST_CRASHLOADED"
	// EventPortChange comes when the guest opens or closes a virtio-serial port.
	EventPortChange = "VSERPORT_CHANGE"
)

// CPU is one virtual processor.
type CPU struct {
	Index    int `json:"cpu-index"`
	ThreadID int `json:"thread-id"` // the host's thread that runs it
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

// Cont lets the virtual processors run.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Quit makes the process flush its disks and exit. It does not wait for the
// exit. A connection that ends before the answer is not an error.
func (c *Client) Quit(ctx context.Context) error {
	err := c.Execute(ctx, "quit", nil, nil)
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// QOMSet sets a property of the object at a path like
// "/machine/peripheral/ID".
func (c *Client) QOMSet(ctx context.Context, path, property string, value any) error {
	return c.Execute(ctx, "qom-set", map[string]any{"path": path, "property": property, "value": value}, nil)
}

// BlockStats counts the requests to one block device.
type BlockStats struct {
	QDev  string `json:"qdev"` // path of the guest's device
	Stats struct {
		FlushOperations int64 `json:"flush_operations"`
	} `json:"stats"`
}

// QueryBlockStats returns the statistics of every block device (query-blockstats).
func (c *Client) QueryBlockStats(ctx context.Context) ([]BlockStats, error) {
	var stats []BlockStats
	err := c.Execute(ctx, "query-blockstats", nil, &stats)
	return stats, err
}
