package domains

import (
	"encoding/xml"
	"slices"
	"strings"
	"testing"
)

func TestLacks(t *testing.T) {
	for text, want := range map[string][]string{
		`<domain><on_crash>preserve</on_crash><devices><panic model='isa'/></devices></domain>`:            nil,
		`<domain><on_crash>preserve</on_crash><devices><panic/><panic model='hyperv'/></devices></domain>`: nil,
		`<domain><on_crash>destroy</on_crash><devices><panic/></devices></domain>`:                         {"is destroy"},
		`<domain><devices><panic/></devices></domain>`:                                                     {"is destroy"},
		`<domain><on_crash>coredump-restart</on_crash><devices><disk/></devices></domain>`:                 {"is coredump-restart", "<panic>"},
		`<domain><metadata><panic/></metadata><on_crash>preserve</on_crash><devices></devices></domain>`:   {"<panic>"},
	} {
		var d description
		if err := xml.Unmarshal([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		got := d.lacks()
		if !slices.EqualFunc(got, want, strings.Contains) {
			t.Errorf("%s lacks %q", text, got)
		}
	}
}

func TestFindRefusesPaths(t *testing.T) {
	if m, err := Find("../../proc/self"); err == nil || !strings.Contains(err.Error(), "no name") {
		t.Errorf("%v, %v", m, err)
	}
}
