package nfsd

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseAddresses(t *testing.T) {
	const table = `#class IP domain
nfsd 10.77.0.9 *
# expiry=1795615223 refcnt=2 flags=1
# nfsd 10.77.0.8 -no-domain-
nfsd fd00::9 10.0.0.0/8,*
nfsd 10.77.0.7 -no-domain-
0.0.0.0 10.77.0.6 *
nfsd 10.77.0.300 *
nfsd fe80::1%eth0 *
nfsd 10.77.0.5
`
	got := parseAddresses(table)
	want := []address{{netip.MustParseAddr("10.77.0.9"), "*"}, {netip.MustParseAddr("fd00::9"), "10.0.0.0/8,*"}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// FuzzParseAddresses: each address and each name that is parsed is one word to the kernel.
func FuzzParseAddresses(f *testing.F) {
	f.Add("nfsd 10.77.0.9 *\nnfsd fd00::9 a,b\n")
	f.Fuzz(func(t *testing.T, table string) {
		for _, a := range parseAddresses(table) {
			if !a.ip.IsValid() || a.domain == "" || strings.ContainsAny(a.ip.String()+a.domain, " \t\n") {
				t.Fatalf("%+v", a)
			}
		}
	})
}
