package metal

import (
	"bytes"
	"regexp"
	"testing"
)

// TestPackageLength: the lengths of the specification (20.2.4), which include their own
// encoding.
func TestPackageLength(t *testing.T) {
	for n, want := range map[int][]byte{
		0: {0x01}, 0x3e: {0x3f}, 0x3f: {0x82, 0x04, 0x00}, 0x1000: {0x83, 0x00, 0x01},
	} {
		if got := packageLength(n); !bytes.Equal(got, want) {
			t.Errorf("%#x bytes have length %x, not %x", n, got, want)
		}
	}
}

func TestEISAID(t *testing.T) {
	// As iasl(1) compiles EISAID ("PNP0A08").
	if got := eisaID("PNP0A08"); !bytes.Equal(got, []byte{0x0c, 0x41, 0xd0, 0x0a, 0x08}) {
		t.Errorf("%x", got)
	}
}

// TestDSDT: the bridge is hidden by the word at the given address, and the other device
// makes the kernel look again.
func TestDSDT(t *testing.T) {
	b := dsdt(0x7be61000, []bridge{{Segment: Segment{Base: 0xb0000000, LastBus: 255}, memory: []Range{{0x80000000, 0xb0000000}}}})
	if _, err := table(b, "DSDT"); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string][]byte{
		"the word":        {0x5b, 0x80, 'P', 'A', 'G', 'E', 0x00, 0x0e, 0x00, 0x10, 0xe6, 0x7b, 0, 0, 0, 0, 0x0a, 4},
		"its field":       {'P', 'A', 'G', 'E', 0x03, 'S', 'T', 'A', 'T', 32},
		"hidden if zero":  {0x93, 'S', 'T', 'A', 'T', 0x00, 0xa4, 0x00, 0xa4, 0x0a, 0x0f},
		"notified if one": {0x93, 'S', 'T', 'A', 'T', 0x01, 0x86, '\\', 0x2e, '_', 'S', 'B', '_', 'P', '0', '0', '0', 0x0a, 0x01, 0xa4, 0x0a, 0x0f},
		"its space":       {0x08, '_', 'C', 'B', 'A', 0x0e, 0, 0, 0, 0xb0, 0, 0, 0, 0},
	} {
		if !bytes.Contains(b, want) {
			t.Errorf("%s is not in it: %x", what, want)
		}
	}
}

// TestDSDTBridges: each bridge of a large machine has a name and a number of its own.
func TestDSDTBridges(t *testing.T) {
	const n = 300
	b := dsdt(0x7be61000, make([]bridge, n))
	for what, pattern := range map[string]string{
		"devices":  `(?s)\x5b\x82[\x80-\xff]..(P[0-9A-F]{3})\x08_HID`,
		"numbers":  `(?s)_UID\x0b(..)`,
		"notified": `\x86\\\x2e_SB_(P[0-9A-F]{3})`,
	} {
		seen := make(map[string]bool)
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(latin1(b), -1) {
			seen[m[1]] = true
		}
		if len(seen) != n {
			t.Errorf("%d different %s of %d bridges", len(seen), what, n)
		}
	}
}

// latin1 converts bytes to a string with one character for each, which regular
// expressions can match.
func latin1(b []byte) string {
	runes := make([]rune, len(b))
	for i, c := range b {
		runes[i] = rune(c)
	}
	return string(runes)
}

func TestMPTables(t *testing.T) {
	p, b := mpTables(0x7be12000)
	if len(p) != 16 || sum(p) != 0 || string(p[:4]) != "_MP_" || sum(b) != 0 || string(b[:4]) != "PCMP" || int(b[4])|int(b[5])<<8 != len(b) {
		t.Errorf("%x, %x", p, b)
	}
}

func TestLog(t *testing.T) {
	l := log{&window{data: make([]byte, logHead+16)}}
	for _, c := range []struct{ write, want string }{
		{"0123456789", "0123456789"}, {"abcdef", "0123456789abcdef"}, {"XY", "23456789abcdefXY"},
	} {
		if _, err := l.Write([]byte(c.write)); err != nil {
			t.Fatal(err)
		}
		if got := string(l.text()); got != c.want {
			t.Errorf("the log is %q, not %q", got, c.want)
		}
	}
}
