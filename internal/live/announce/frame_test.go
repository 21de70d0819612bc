package announce

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

var (
	mac   = MAC{0x52, 0x54, 0, 0, 0, 2}
	addr4 = netip.MustParseAddr("10.77.0.2")
	addr6 = netip.MustParseAddr("fd00::2")
)

// spell decodes hexadecimal bytes. Spaces separate the fields.
func spell(t *testing.T, s string) string {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestFrames compares frames with ones that were written down field by field from the
// RFCs. Another program computed the checksums of those.
func TestFrames(t *testing.T) {
	arps := Gratuitous(mac, addr4)
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"ARP request", arps[0], "ffffffffffff 525400000002 0806 0001 0800 06 04 0001 525400000002 0a4d0002 000000000000 0a4d0002"},
		{"ARP reply", arps[1], "ffffffffffff 525400000002 0806 0001 0800 06 04 0002 525400000002 0a4d0002 525400000002 0a4d0002"},
		{"advertisement", Advertisement(mac, addr6, false), "333300000001 525400000002 86dd" +
			"60000000 0020 3a ff fd000000000000000000000000000002 ff020000000000000000000000000001" +
			"88 00 0a44 20000000 fd000000000000000000000000000002 02 01 525400000002"},
		{"advertisement of a router", Advertisement(mac, addr6, true), "333300000001 525400000002 86dd" +
			"60000000 0020 3a ff fd000000000000000000000000000002 ff020000000000000000000000000001" +
			"88 00 8a43 a0000000 fd000000000000000000000000000002 02 01 525400000002"},
		{"membership", Membership(mac, netip.MustParseAddr("fd00::12ab:cdef")), "333300000016 525400000002 86dd" +
			"60000000 0024 00 01 fe80000000000000505400fffe000002 ff020000000000000000000000000016" +
			"3a 00 05 02 0000 01 00 8f 00 5318 0000 0001 04 00 0000 ff0200000000000000000001ffabcdef"},
	}
	for _, tt := range tests {
		if string(tt.got) != spell(t, tt.want) {
			t.Errorf("%s:\n got %x\nwant %x", tt.name, tt.got, spell(t, tt.want))
		}
	}
}

// TestSegments does the same with packets about connections.
func TestSegments(t *testing.T) {
	four := Ends{netip.MustParseAddrPort("10.77.0.2:2049"), netip.MustParseAddrPort("10.77.0.1:1023")}
	six := Ends{netip.MustParseAddrPort("[fd00::2]:80"), netip.MustParseAddrPort("[fd00::1]:40000")}
	const header6 = "60000000 0014 06 40 fd000000000000000000000000000002 fd000000000000000000000000000001"
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"reset", four.Reset(0xfffffff0),
			"45 00 0028 0000 4000 40 06 2634 0a4d0002 0a4d0001 0801 03ff fffffff0 00000000 50 04 0000 8f53 0000"},
		{"tickle", four.Tickle(0, 0x12345678), // one less than 0
			"45 00 0028 0000 4000 40 06 2634 0a4d0002 0a4d0001 0801 03ff ffffffff 12345678 50 10 0000 268c 0000"},
		{"reset over IPv6", six.Reset(1), header6 + "0050 9c40 00000001 00000000 50 04 0000 194b 0000"},
		{"tickle over IPv6", six.Tickle(0x80000000, 2), header6 + "0050 9c40 7fffffff 00000002 50 10 0000 993e 0000"},
	}
	for _, tt := range tests {
		if string(tt.got) != spell(t, tt.want) {
			t.Errorf("%s:\n got %x\nwant %x", tt.name, tt.got, spell(t, tt.want))
		}
	}
}
