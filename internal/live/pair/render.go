package pair

import (
	"bytes"
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// YAML writes the pair as a pair.yaml that Parse reads to an equal pair: paths
// absolute and defaults written out. It is what is kept of a running pair.
func (p *Pair) YAML() ([]byte, error) {
	partitions := mappingNode()
	for _, part := range p.Partitions {
		partitions.Content = append(partitions.Content, textNode(part.Name), mappingNode(
			"cpus", formatCPUs(part.CPUs), "vcpus", strconv.Itoa(part.VCPUs), "memory", formatMemory(part.Memory), "kernel", part.Kernel,
			"?initramfs", part.Initramfs, "?root", part.Root, "append", part.Append, "accel", string(part.Accel)))
	}
	disks, nics, services := sequenceNode(), sequenceNode(), sequenceNode()
	for _, d := range p.Disks {
		disks.Content = append(disks.Content, mappingNode("name", d.Name, "image", d.Image,
			"type", string(d.Type), "mount", d.Mount, "options", d.Options))
	}
	for _, n := range p.NICs {
		nics.Content = append(nics.Content, n.networkNode())
	}
	for _, s := range p.Services {
		command := sequenceNode()
		for _, arg := range s.Command {
			command.Content = append(command.Content, textNode(arg))
		}
		ready := ""
		if s.Ready > 0 {
			ready = strconv.Itoa(s.Ready)
		}
		services.Content = append(services.Content, mappingNode("name", s.Name, "command", command, "?ready", ready))
	}
	root := mappingNode("name", p.Name, "partitions", partitions, "disks", disks, "nics", nics, "services", services)
	if p.NFS != nil {
		root.Content = append(root.Content, textNode("nfs"), p.NFS.node())
	}
	root.Content = append(root.Content, mappingNode("heartbeat", mappingNode("period", p.Heartbeat.Period.String(), "limit", p.Heartbeat.Limit.String()),
		"takeover", mappingNode("salvage", strconv.FormatBool(p.Takeover.Salvage), "sync", string(p.Takeover.Sync),
			"rehearse", strconv.FormatBool(p.Takeover.Rehearse),
			"notify", p.Takeover.Notify.node(), "notify_rate", strconv.Itoa(p.Takeover.NotifyRate))).Content...)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return nil, fmt.Errorf("write pair: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("write pair: %w", err)
	}
	return b.Bytes(), nil
}

// textNode is a quoted string: no value is mistaken for another type.
func textNode(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: s}
}

func sequenceNode() *yaml.Node { return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"} }

// mappingNode takes keys and values in turn; values are strings or nodes. A
// key that begins with ? is left out if its value is "".
func mappingNode(pairs ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i+1 < len(pairs); i += 2 {
		key := pairs[i].(string)
		value, isNode := pairs[i+1].(*yaml.Node)
		if !isNode {
			text := pairs[i+1].(string)
			if key[0] == '?' {
				if text == "" {
					continue
				}
				key = key[1:]
			}
			value = textNode(text)
		}
		m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, value)
	}
	return m
}
