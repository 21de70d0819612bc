// Package partition is a share of the machine with an operating system in it:
// as data, as the QEMU command that is made from the data, and as the running
// process, pinned to its CPUs and with its memory in a file that outlives it.
package partition

import (
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"understudy.dev/understudy/internal/live/wire"
)

// Spec says what a partition is made of.
type Spec struct {
	Name      string
	Dir       string // where its sockets, log and memory file live; a tmpfs
	CPUs      []int  // of the machine: nothing of the partition runs elsewhere
	VCPUs     int    // virtual CPUs, spread evenly over CPUs
	Memory    uint64 // bytes
	Kernel    string // path of a bzImage
	Initramfs string // path; empty: none
	Append    string // more kernel parameters
	Reboots   bool   // a reset reboots it, like a real machine, and does not end the process
	Outlives  bool   // it goes on when the process that started it ends
	Accel     Accel
	Devices   []Device
}

// Device is something attached to a partition. It adds the arguments that make
// QEMU emulate it.
type Device interface {
	add(*command)
}

// Paths of a partition's own files.
func (s *Spec) path(ending string) string { return filepath.Join(s.Dir, s.Name+ending) }

// RAMPath is the file that holds the partition's memory: guest physical memory
// of a q35 machine, which outlives the process.
func (s *Spec) RAMPath() string { return s.path(".ram") }

// BeatPath is the page that the partition's agent beats on.
func (s *Spec) BeatPath() string { return s.path(".beat") }

// consolePath is the socket of the first serial port.
func (s *Spec) consolePath() string { return s.path(".console") }

// ConsoleLogPath is the file with the output of the first serial port.
func (s *Spec) ConsoleLogPath() string { return s.path(".console.log") }

// logPath is the file with the QEMU command line and what QEMU printed.
func (s *Spec) logPath() string { return s.path(".log") }

// AgentPath is the socket of the agent's virtio-serial port.
func (s *Spec) AgentPath() string { return s.path(".agent") }

func (s *Spec) qmpPath() string { return s.path(".qmp") }

// command collects QEMU's arguments, in a stable order, and the open files
// that some of them refer to by number.
type command struct {
	args  []string
	files []*os.File
}

func (c *command) arg(words ...string) { c.args = append(c.args, words...) }

// opt adds one option with its comma-separated properties. A comma inside a
// value is doubled for QEMU's option parser.
func (c *command) opt(option string, properties ...string) {
	properties = slices.Clone(properties)
	for i, p := range properties {
		properties[i] = strings.ReplaceAll(p, ",", ",,")
	}
	c.arg(option, strings.Join(properties, ","))
}

// file passes an open file on and returns its number in the new process, where
// the passed ones come after standard input, output and error.
func (c *command) file(f *os.File) int {
	c.files = append(c.files, f)
	return 2 + len(c.files)
}

// command is the QEMU command line of the partition, without the name of the
// program. It starts stopped, so that its CPUs are pinned before they run.
func (s *Spec) command() *command {
	c := &command{}
	c.arg(headless...)
	c.arg("-S")
	c.opt("-sandbox", sandbox...)
	if s.Outlives && os.Geteuid() == 0 {
		c.arg(becoming(helpOf(), s.user())...)
	}
	c.opt("-name", "understudy-"+s.Name, "debug-threads=on")
	c.opt("-machine", "q35", "memory-backend=ram", "usb=off", "vmport=off")
	c.arg(s.Accel.args()...)
	c.opt("-smp", fmt.Sprint(s.VCPUs))
	c.opt("-m", fmt.Sprintf("size=%dk", s.Memory>>10))
	c.opt("-object", "memory-backend-file", "id=ram", fmt.Sprintf("size=%d", s.Memory), "mem-path="+s.RAMPath(), "share=on")
	// A panic only sends its event, and a reset ends the process: what was in
	// memory stays there, for the takeover.
	reboot := "reboot=shutdown"
	if s.Reboots {
		reboot = "reboot=reset"
	}
	c.opt("-action", "panic=none", reboot)
	c.opt("-qmp", "unix:"+s.qmpPath(), "server=on", "wait=off")
	c.opt("-chardev", "socket", "id=console", "path="+s.consolePath(), "server=on", "wait=off", "logfile="+s.ConsoleLogPath(), "logappend=on")
	c.opt("-serial", "chardev:console")
	// Not opt: these are one string each to QEMU, commas and all.
	c.arg("-kernel", s.Kernel)
	if s.Initramfs != "" {
		c.arg("-initrd", s.Initramfs)
	}
	c.arg("-append", s.kernelCommandLine())
	for _, device := range panicDevices {
		c.opt("-device", device)
	}
	c.opt("-device", "virtio-serial-pci")
	c.opt("-chardev", "socket", "id=agent", "path="+s.AgentPath(), "server=on", "wait=off")
	c.opt("-device", "virtserialport", "id="+AgentPort, "chardev=agent", "name="+wire.PortName)
	c.opt("-object", "memory-backend-file", "id=beat", "size=4096", "mem-path="+s.BeatPath(), "share=on")
	c.opt("-device", "ivshmem-plain", "memdev=beat")
	for _, d := range s.Devices {
		d.add(c)
	}
	return c
}

// user is the user and group that QEMU changes to once it has opened all that it needs: an id that
// belongs to nobody, from the range that systemd gives to services while they run
// (systemd.exec(5), DynamicUser), and another one for each partition.
func (s *Spec) user() string {
	const first, last = 61184, 65519
	h := fnv.New32a()
	h.Write([]byte(s.RAMPath()))
	id := first + h.Sum32()%(last-first+1)
	return fmt.Sprintf("%d:%d", id, id)
}

// AgentPort is the id of the agent's port in QEMU's events.
const AgentPort = "port-agent"

func (s *Spec) kernelCommandLine() string {
	words := append(s.Accel.kernelParameters(), s.Append)
	return strings.TrimSpace(strings.Join(words, " "))
}

// CommandLine is the program and its arguments, quoted for a shell.
func (s *Spec) CommandLine() string { return s.command().line() }

func (c *command) line() string {
	words := append([]string{qemu}, c.args...)
	for i, w := range words {
		if strings.ContainsAny(w, " \t\n\"'\\$&;|<>()*?[]#~`!{}") {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}
