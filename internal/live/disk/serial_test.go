package disk

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestSerial(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"virtio", "serial", "data\n", "data"},
		{"NVMe", "device/serial", "S4EWNX0R   \n", "S4EWNX0R"},
		{"SATA", "device/vpd_pg80", "\x00\x80\x00\x08    WD-1", "WD-1"},
		{"padded", "device/vpd_pg80", "\x00\x80\x00\x04WD-1\x00\x00", "WD-1"},
		{"another page", "device/vpd_pg80", "\x00\x83\x00\x04WD-1", ""},
		{"cut short", "device/vpd_pg80", "\x00\x80\x00\x05WD-1", ""},
		{"no header", "device/vpd_pg80", "\x00\x80\x00", ""},
		{"binary", "device/vpd_pg80", "\x00\x80\x00\x02W\x01", ""},
		{"none", "size", "8\n", ""},
	} {
		root := fstest.MapFS{"sys/block/x/" + c.file: &fstest.MapFile{Data: []byte(c.text)}}
		if got := Serial(root, "sys/block/x"); got != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

// FuzzVPD: a serial number has only printable characters, and is part of its page.
func FuzzVPD(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x08    WD-1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := parseVPD(b); strings.ContainsAny(s, "\x00\n") || !strings.Contains(string(b), s) {
			t.Fatalf("%q is %q", b, s)
		}
	})
}
