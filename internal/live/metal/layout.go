package metal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

// Layout of the ranges of a reservation: offsets in bytes.
const (
	// Low.
	lowTrampoline = 0x0000 // of the understudy's first CPU
	lowPark       = 0x1000 // for the dead kernel's CPUs
	lowCell       = 0x2000 // for the machine's boot CPU: cell, and its page tables
	lowMemory     = 0x10000

	// Mid.
	midACPI    = 0x00000
	midParams  = 0x10000
	midCmdline = 0x11000
	midMP      = 0x12000
	midPaging  = 0x20000
	midBeat    = 0x60000 // the active side's beat, liveness.PageBytes long
	midStatus  = 0x61000 // StatusPage
	midConfig  = 0x70000
	midLog     = 0x80000
	midMemory  = 0x200000 // from there on it is the understudy's memory

	pageBytes   = 4096
	configBytes = midLog - midConfig
	logBytes    = 256 << 10
)

// BeatPage is the address of the page on which the active side's agent counts.
func (r Reservation) BeatPage() uint64 { return r.Mid.Start + midBeat }

// StatusPage is the address of the page on which the two sides communicate.
func (r Reservation) StatusPage() uint64 { return r.Mid.Start + midStatus }

// Config is what the understudy is told when it is started.
type Config struct {
	// Version is the version of the program that started the understudy. It must be the understudy's own: the
	// layout of this configuration, and of the memory that both use, may differ between versions.
	Version string      `json:"version"`
	Role    wire.Config `json:"role"`
	// Drivers are the drivers of the role's devices in the active kernel, as far as the devices are there.
	Drivers []Driver `json:"drivers,omitempty"`
	// Memory is the active kernel's memory.
	Memory []Range `json:"memory"`
	// APIC is the address of every CPU's local APIC. BootCPU is the APIC number of the machine's boot CPU,
	// which must not get an INIT: that would reset the machine. It is a CPU of the active kernel unless it is
	// parked. Others are the active kernel's other CPUs.
	APIC     uint64    `json:"apic"`
	BootCPU  uint32    `json:"boot_cpu"`
	Parked   bool      `json:"parked,omitempty"`
	Others   []uint32  `json:"others"`
	Segments []Segment `json:"segments"`
	// Roots has a Segment for each host bridge, which begins with the bridge's first bus.
	Roots []Segment `json:"roots"`
	// Limit is how long the active side may be silent once it has begun to beat, and CPU is how long one of
	// its CPUs may be. Zero means no limit.
	Limit time.Duration `json:"limit"`
	CPU   time.Duration `json:"cpu"`
	// Again is what the understudy starts another one from, once it is active itself; nil means that it
	// starts none.
	Again *Again `json:"again,omitempty"`
	// Former is the reservation of the active kernel, if that is an understudy itself.
	Former *Reservation `json:"former,omitempty"`
}

// CPUs is how many CPUs the active kernel has.
func (c *Config) CPUs() int {
	if c.Parked {
		return len(c.Others)
	}
	return 1 + len(c.Others)
}

// roots are the first buses of the host bridges of a group.
func (c *Config) roots(group uint16) (buses []byte) {
	for _, r := range c.Roots {
		if r.Group == group {
			buses = append(buses, r.FirstBus)
		}
	}
	return buses
}

// SameVersion returns an error if this configuration was made by a program of another version.
func (c *Config) SameVersion(version string) error {
	if c.Version != version {
		return fmt.Errorf("the image has understudy %s, and it was started by %s: make it again, by understudy metal install or initramfs", version, c.Version)
	}
	return nil
}

const configMagic = 0x666e6f6364737375

// encode returns a configuration as it is in memory: magic, length, JSON.
func (c *Config) encode() ([]byte, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if len(raw)+16 > configBytes {
		return nil, fmt.Errorf("the understudy's configuration of %d bytes is too long", len(raw))
	}
	b := binary.LittleEndian.AppendUint64(nil, configMagic)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(raw)))
	return append(b, raw...), nil
}

// decodeConfig reads a config.
func decodeConfig(b []byte) (*Config, error) {
	if len(b) < 16 || binary.LittleEndian.Uint64(b) != configMagic {
		return nil, errors.New("read configuration: magic not found")
	}
	n := binary.LittleEndian.Uint64(b[8:])
	if n > uint64(len(b)-16) {
		return nil, fmt.Errorf("read configuration: %d bytes are too many", n)
	}
	c := new(Config)
	if err := json.Unmarshal(b[16:16+n], c); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return c, nil
}
