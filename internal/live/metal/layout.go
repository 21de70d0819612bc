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
	midBeat    = 0x60000 // liveness.PageBytes: of the active side
	midStatus  = 0x61000 // StatusPage
	midConfig  = 0x70000
	midLog     = 0x80000
	midMemory  = 0x200000 // from there on it is the understudy's memory

	pageBytes   = 4096
	configBytes = midLog - midConfig
	logBytes    = 256 << 10
)

// BeatPage is where the active side's agent counts.
func (r Reservation) BeatPage() uint64 { return r.Mid.Start + midBeat }

// StatusPage is what the two sides tell each other on.
func (r Reservation) StatusPage() uint64 { return r.Mid.Start + midStatus }

// Config is what the understudy is told when it is started.
type Config struct {
	// Version is that of the program that started the understudy, and must be the understudy's: what this and
	// the memory that both use look like may differ.
	Version string      `json:"version"`
	Role    wire.Config `json:"role"`
	// Drivers are those of the role's devices in the active kernel, as far as they are there.
	Drivers []Driver `json:"drivers,omitempty"`
	// Memory is the active kernel's.
	Memory []Range `json:"memory"`
	// APIC is the address of every CPU's local APIC. BootCPU is the machine's, which
	// must not get an INIT: it would reset the machine. It is one of the active kernel's unless it
	// is parked. Others are the active kernel's other ones.
	APIC     uint64    `json:"apic"`
	BootCPU  uint32    `json:"boot_cpu"`
	Parked   bool      `json:"parked,omitempty"`
	Others   []uint32  `json:"others"`
	Segments []Segment `json:"segments"`
	// Roots are the first buses of the host bridges, one in each segment of its own.
	Roots []Segment `json:"roots"`
	// Limit is how long the active side may be silent once it has begun to beat, and CPU
	// how long one of its CPUs; zero: as long as it likes.
	Limit time.Duration `json:"limit"`
	CPU   time.Duration `json:"cpu"`
	// Again is what the understudy is to start another of, once it is active itself; nil: none.
	Again *Again `json:"again,omitempty"`
	// Former is the memory of the active kernel, if that was an understudy before.
	Former *Reservation `json:"former,omitempty"`
}

// CPUs is how many the active kernel has.
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

// SameVersion is an error if this configuration is of another program than one of that version.
func (c *Config) SameVersion(version string) error {
	if c.Version != version {
		return fmt.Errorf("the image has understudy %s, and it was started by %s: make it again, by understudy metal install or initramfs", version, c.Version)
	}
	return nil
}

const configMagic = 0x666e6f6364737375

// encode is a config as it stands in memory: magic, length, JSON.
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
