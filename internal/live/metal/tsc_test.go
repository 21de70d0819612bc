package metal

import (
	"maps"
	"strings"
	"testing"
)

func TestParseSymbols(t *testing.T) {
	const list = `0000000000000000 A fixed_percpu_data
ffffffff9c600000 T _stext
ffffffff9e0a1b2c D tsc_khz
ffffffff9e0a1b30 d tsc_khz_other
ffffffffc0001000 t init	[virtio]
`
	got, err := parseSymbols(strings.NewReader(list), []string{"tsc_khz", "x2apic_mode"})
	if want := map[string]uint64{"tsc_khz": 0xffffffff9e0a1b2c}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%x, %v", got, err)
	}
	if got, err := parseSymbols(strings.NewReader("0000000000000000 D tsc_khz\n"), wanted); err == nil {
		t.Errorf("%x, where addresses are hidden", got)
	}
	if _, err := parseSymbols(strings.NewReader("nonsense nonsense  tsc_khz\n"), []string{"tsc_khz"}); err == nil {
		t.Error("nonsense was parsed")
	}
}
