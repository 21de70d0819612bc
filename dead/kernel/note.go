package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"understudy.dev/understudy/dead/addr"
)

// The VMCOREINFO note as the kernel lays it out once at boot: an ELF note
// header, the name, then lines of text (kernel/crash_core.c, append_elf_note
// and crash_save_vmcoreinfo_init). It lies at the start of a page, because
// alloc_pages_exact provided the memory for it.
const (
	noteName       = "VMCOREINFO\x00"
	noteHeadSize   = 12                             // Elf64_Nhdr: name size, descriptor size, type
	noteTextOffset = noteHeadSize + (11+3)&^3       // the name is padded to 4 bytes
	noteTextMax    = 4 * addr.PageSize              // VMCOREINFO_BYTES is one page
	noteTextMin    = len("OSRELEASE=\nPAGESIZE=\n") // anything smaller cannot be a note
)

// note is a parsed VMCOREINFO note.
type note struct {
	text   string            // the descriptor, without what a crash appends
	values map[string]string // KEY or KIND(KEY) to value
	arch   *architecture
	unit   addr.Pages // of the kernel's base pages
}

// noteTextSize checks the head of a note and returns the size of its text in
// bytes.
func noteTextSize(head []byte) (int, bool) {
	if len(head) < noteTextOffset {
		return 0, false
	}
	nameSize := binary.LittleEndian.Uint32(head)
	textSize := binary.LittleEndian.Uint32(head[4:])
	kind := binary.LittleEndian.Uint32(head[8:])
	if nameSize != uint32(len(noteName)) || kind != 0 ||
		textSize < uint32(noteTextMin) || textSize > noteTextMax {
		return 0, false
	}
	if !bytes.HasPrefix(head[noteHeadSize:], []byte(noteName)) {
		return 0, false
	}
	return int(textSize), true
}

// parseNote parses the text of a note. A line without '=' is an error: the
// format strings in the kernel's own read-only data look like a note, too.
func parseNote(text []byte) (*note, error) {
	n := &note{values: make(map[string]string)}
	if len(text) > noteTextMax {
		return nil, fmt.Errorf("parse vmcoreinfo: %d bytes are too many", len(text))
	}
	// A crash appends its time (crash_save_vmcoreinfo), which is not part of the identity.
	if i := bytes.Index(text, []byte("CRASHTIME=")); i >= 0 {
		text = text[:i]
	}
	text = bytes.TrimRight(text, "\x00")
	n.text = string(text)
	for line := range strings.Lines(n.text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok || key == "" || !printable(line) {
			return nil, fmt.Errorf("parse vmcoreinfo: %.40q is not key=value", line)
		}
		if _, dup := n.values[key]; dup {
			return nil, fmt.Errorf("parse vmcoreinfo: %.40q is there twice", key)
		}
		n.values[key] = value
	}
	if n.values["OSRELEASE"] == "" {
		return nil, fmt.Errorf("parse vmcoreinfo: no OSRELEASE")
	}
	var err error
	n.arch, n.unit, err = architectureOf(n)
	return n, err
}

func printable(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '\n' && (c < ' ' || c > '~') {
			return false
		}
	}
	return true
}

// symbol returns the value of SYMBOL(name)=hex.
func (n *note) symbol(name string) (addr.Virt, error) {
	s, ok := n.values["SYMBOL("+name+")"]
	if !ok {
		return 0, fmt.Errorf("vmcoreinfo symbol %s: %w", name, ErrNotFound)
	}
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("vmcoreinfo symbol %s: %w", name, err)
	}
	return addr.Virt(v), nil
}

// number returns the value of NUMBER(name)=decimal, or 0xhexadecimal, which may be unsigned.
func (n *note) number(name string) (int64, error) {
	s, ok := n.values["NUMBER("+name+")"]
	if !ok {
		return 0, fmt.Errorf("vmcoreinfo number %s: %w", name, ErrNotFound)
	}
	if digits, ok := strings.CutPrefix(s, "0x"); ok {
		v, err := strconv.ParseUint(digits, 16, 64)
		if err != nil {
			return 0, fmt.Errorf("vmcoreinfo number %s: %w", name, err)
		}
		return int64(v), nil
	}
	// sme_mask is unsigned (%llu), the others are signed.
	if v, err := strconv.ParseUint(s, 10, 64); err == nil {
		return int64(v), nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("vmcoreinfo number %s: %w", name, err)
	}
	return v, nil
}

// offset returns the value of OFFSET(name)=decimal, where name is
// "struct.member".
func (n *note) offset(name string) (int, error) {
	return n.count("OFFSET(" + name + ")")
}

// length returns the value of LENGTH(name)=decimal: the number of elements of an array.
func (n *note) length(name string) (int, error) { return n.count("LENGTH(" + name + ")") }

func (n *note) count(key string) (int, error) {
	s, ok := n.values[key]
	if !ok {
		return 0, fmt.Errorf("vmcoreinfo %s: %w", key, ErrNotFound)
	}
	v, err := strconv.ParseUint(s, 10, 24)
	if err != nil {
		return 0, fmt.Errorf("vmcoreinfo %s: %w", key, err)
	}
	return int(v), nil
}
