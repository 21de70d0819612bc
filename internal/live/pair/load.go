package pair

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Load reads and validates the file at path, and refuses disk images that
// exist in a format that is not raw. The error joins one *Problem for each
// thing wrong.
func Load(path string) (*Pair, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read pair: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read pair: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("read pair: %w", err)
	}
	p, err := parse(path, filepath.Dir(abs), data)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(p.checkFormats()...); err != nil {
		return nil, err
	}
	return p, nil
}

// NameIn returns the name of the pair that a file describes, even if other things in the file
// are wrong; empty if the name cannot be read.
func NameIn(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	var text struct {
		Name string `yaml:"name"`
	}
	if err := yaml.NewDecoder(io.LimitReader(f, maxFile)).Decode(&text); err != nil || !validName(text.Name) {
		return ""
	}
	return text.Name
}

// parse validates the text of a pair.yaml. file is its name in messages, and
// relative paths in it start at dir. It looks at no other file.
func parse(file, dir string, data []byte) (*Pair, error) {
	p := &Pair{file: file, lines: make(map[string]int)}
	r := &reader{pair: p, dir: dir}
	root, err := r.document(data)
	if err != nil {
		return nil, err
	}
	r.top(root)
	r.problems = append(r.problems, p.rules()...)
	if err := errors.Join(r.problems...); err != nil {
		return nil, err
	}
	return p, nil
}

// yamlError matches a syntax error of the yaml package.
var yamlError = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)

// document returns the root node of the only document in data.
func (r *reader) document(data []byte) (*yaml.Node, error) {
	fail := func(line int, hint, what string) (*yaml.Node, error) {
		return nil, &Problem{File: r.pair.file, Line: line, What: what, Hint: hint}
	}
	if len(data) > maxFile {
		return fail(0, "is this the right file?", fmt.Sprintf("is larger than %d bytes", maxFile))
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := dec.Decode(&doc)
	if err == nil && len(doc.Content) > 0 && doc.Content[0].ShortTag() != "!!null" {
		switch err = dec.Decode(&next); {
		case err == nil:
			return fail(next.Line, "keep one pair in a file", "a second document begins")
		case errors.Is(err, io.EOF):
			return doc.Content[0], nil
		}
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fail(0, "see the example in the README", "is empty")
	}
	line, what := 0, err.Error()
	if m := yamlError.FindStringSubmatch(what); m != nil {
		line, _ = strconv.Atoi(m[1]) // 0 if there is none
		what = m[2]
	}
	return fail(line, "correct the YAML there or just above", "is not YAML: "+what)
}

// top reads the whole file.
func (r *reader) top(root *yaml.Node) {
	p := r.pair
	p.Heartbeat = Heartbeat{
		Period: 20 * time.Millisecond, Limit: 300 * time.Millisecond,
		CPU: 10 * time.Second, Scheduler: 30 * time.Second, Disk: 30 * time.Second,
	}
	p.Takeover = Takeover{Salvage: true, Sync: SyncAfter, Rehearse: true, Refused: RefusedServe, Degraded: DegradedReport, Notify: Notify{All: true}, NotifyRate: defaultNotifyRate}
	r.mapping(root, "",
		r.name(&p.Name),
		field{"partitions", true, r.partitions},
		field{"disks", false, func(node *yaml.Node, key string) { r.sequence(node, key, r.disk) }},
		field{"nics", false, func(node *yaml.Node, key string) { r.sequence(node, key, r.nic) }},
		field{"services", false, func(node *yaml.Node, key string) { r.sequence(node, key, r.service) }},
		field{"nfs", false, r.nfs},
		field{"heartbeat", false, r.heartbeat},
		field{"takeover", false, r.takeover},
		field{"hooks", false, func(node *yaml.Node, key string) { r.sequence(node, key, r.hook) }},
		parsed(r, "metrics", false, &p.Metrics, metricsHint, parseListen),
	)
}

func (r *reader) partitions(node *yaml.Node, key string) {
	if !r.is(node, key, yaml.MappingNode) {
		return
	}
	if n := len(node.Content) / 2; n != 2 {
		r.refuse(node, key, "describe the two that share the machine", "has %d partitions, and must have exactly 2", n)
		return
	}
	for i := range r.pair.Partitions {
		name := node.Content[2*i]
		at := join(key, name.Value)
		if name.Kind != yaml.ScalarNode || !validName(name.Value) {
			r.refuse(name, key, nameHint, "%q is not a valid name", name.Value)
			continue
		}
		if name.Value == r.pair.Partitions[0].Name {
			r.refuse(name, at, "give each a name of its own", "given again")
			continue
		}
		r.pair.lines[at] = name.Line
		r.pair.Partitions[i] = Partition{Name: name.Value, Accel: AccelAuto}
		r.partition(node.Content[2*i+1], at, &r.pair.Partitions[i])
	}
}

func (r *reader) partition(node *yaml.Node, key string, p *Partition) {
	r.mapping(node, key,
		parsed(r, "cpus", true, &p.CPUs, cpusHint, parseCPUs),
		parsed(r, "vcpus", false, &p.VCPUs, vcpusHint, parseVCPUs),
		parsed(r, "memory", true, &p.Memory, memoryHint, parseMemory),
		r.path("kernel", true, &p.Kernel),
		r.path("initramfs", false, &p.Initramfs),
		r.path("root", false, &p.Root),
		r.text("append", &p.Append),
		choice(r, "accel", false, &p.Accel, AccelAuto, AccelKVM, AccelTCG),
	)
	if p.VCPUs == 0 {
		p.VCPUs = len(p.CPUs)
	}
	if p.Initramfs == "" && p.Root == "" && node.Kind == yaml.MappingNode {
		r.refuse(node, key, "add initramfs: or root:", "has nothing to boot from")
	}
}

func (r *reader) disk(node *yaml.Node, key string) {
	d := Disk{Type: Ext4}
	r.mapping(node, key,
		r.name(&d.Name),
		r.path("image", true, &d.Image),
		parsed(r, "partition", false, &d.Part, partHint, parsePart),
		r.path("mirror", false, &d.Mirror),
		parsed(r, "luks", false, &d.LUKS, "name a file with the key that both guests have", parseKey),
		parsed(r, "lvm", false, &d.LVM, "write GROUP/NAME", parseVolume),
		choice(r, "type", false, &d.Type, Ext4, Ext3, XFS, Btrfs),
		parsed(r, "mount", true, &d.Mount, mountHint, parseMount),
		parsed(r, "options", false, &d.Options, "remove that option", parseOptions),
	)
	r.pair.Disks = append(r.pair.Disks, d)
}

func (r *reader) nic(node *yaml.Node, key string) {
	var n NIC
	r.mapping(node, key,
		r.name(&n.Name),
		parsed[net.HardwareAddr](r, "mac", true, &n.MAC, macHint, parseMAC),
		parsed[netip.Prefix](r, "address", true, &n.Address, addressHint, parseAddress),
		parsed[netip.Addr](r, "gateway", false, &n.Gateway, gatewayHint, parseGateway),
		parsed(r, "address6", false, &n.Address6, address6Hint, parseAddress6),
		parsed(r, "gateway6", false, &n.Gateway6, gateway6Hint, parseGateway6),
		r.routes(&n.Routes),
		parsed(r, "bridge", true, &n.Bridge, bridgeHint, parseBridge),
	)
	r.pair.NICs = append(r.pair.NICs, n)
}

func (r *reader) service(node *yaml.Node, key string) {
	s := Service{Rehearse: true, Stop: defaultStop}
	command := r.command(&s.Command, "write e.g. [busybox, httpd, -f]")
	command.required = false
	r.mapping(node, key, r.name(&s.Name), command,
		parsed(r, "unit", false, &s.Unit, "write e.g. nginx.service", parseUnit),
		parsed(r, "ready", false, &s.Ready, "write the TCP port that it listens on", parsePort),
		parsed(r, "rehearse", false, &s.Rehearse, "write true or false", parseBool),
		parsed(r, "stop", false, &s.Stop, stopHint, parseStop))
	if node.Kind == yaml.MappingNode && has(node, "unit") == has(node, "command") {
		r.refuse(node, key, "write command: with a program, or unit: with a service of systemd's", "needs exactly one of the keys %q and %q", "command", "unit")
	}
	if s.Unit != "" {
		s.Stop = 0
		if has(node, "stop") {
			r.refuse(node, key, "set TimeoutStopSec= of the unit", "key %q is for a command", "stop")
		}
	}
	r.pair.Services = append(r.pair.Services, s)
}

// has says whether a mapping has a key.
func has(node *yaml.Node, key string) bool {
	for i := 0; i < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return true
		}
	}
	return false
}

// command is the field of a program with its arguments.
func (r *reader) command(to *[]string, hint string) field {
	return field{"command", true, func(node *yaml.Node, key string) {
		r.sequence(node, key, func(node *yaml.Node, key string) {
			if arg, ok := r.scalar(node, key, true); ok {
				*to = append(*to, arg)
			}
		})
		if node.Kind == yaml.SequenceNode && (len(node.Content) == 0 || strings.TrimSpace(node.Content[0].Value) == "") {
			r.refuse(node, key, hint, "names no program")
		}
	}}
}

func (r *reader) heartbeat(node *yaml.Node, key string) {
	h := &r.pair.Heartbeat
	r.mapping(node, key,
		parsed(r, "period", false, &h.Period, durationHint, parseDuration),
		parsed(r, "limit", false, &h.Limit, durationHint, parseDuration),
		parsed(r, "cpu", false, &h.CPU, pulseHint, parsePulse),
		parsed(r, "scheduler", false, &h.Scheduler, pulseHint, parsePulse),
		parsed(r, "disk", false, &h.Disk, pulseHint, parsePulse),
	)
}

func (r *reader) takeover(node *yaml.Node, key string) {
	t := &r.pair.Takeover
	r.mapping(node, key,
		parsed(r, "salvage", false, &t.Salvage, "write true or false", parseBool),
		parsed(r, "rehearse", false, &t.Rehearse, "write true or false", parseBool),
		choice(r, "sync", false, &t.Sync, SyncBefore, SyncAfter),
		choice(r, "refused", false, &t.Refused, RefusedServe, RefusedStop),
		choice(r, "degraded", false, &t.Degraded, DegradedReport, DegradedTakeOver),
		r.notify(&t.Notify),
		parsed(r, "notify_rate", false, &t.NotifyRate, rateHint, parseRate),
	)
}
