package ram_test

import (
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestVmcore checks that what a second kernel copied from /proc/vmcore after the crash is
// what the RAM file has, except for the part for the second kernel, which it lacks; and that the
// same goes for what makedumpfile makes of it.
func TestVmcore(t *testing.T) {
	image := fixture.Get(t, fixture.Kdumped)
	d := openDead(t, image)
	mem, err := ram.OpenFile(image.Dump)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	d.pieces = nil
	for _, r := range mem.Ranges() {
		d.pieces = append(d.pieces, d.piece(r))
	}
	if _, ok := mem.(ram.Noted).VMCoreInfo(); !ok {
		t.Error("it has no note")
	}
	d.checkSame(t, image.Dump)
	tool := makedumpfile(t)
	for _, option := range []string{"-c -d 17", "-l -d 17", "-E -d 16"} {
		t.Run(option, func(t *testing.T) { d.checkSame(t, runMakedumpfile(t, tool, image.Dump, strings.Fields(option))) })
	}
}

// TestLiME checks that what LiME captured of a running guest, in which nothing wrote to files
// any more, gives the plans that the RAM file of the later crash gives.
func TestLiME(t *testing.T) {
	image := fixture.Get(t, fixture.Captured)
	d := openDead(t, image)
	mem, err := ram.OpenFile(image.Dump)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if info := mem.(ram.Described).Info(); info.Format != "LiME capture" || info.MissesCache() {
		t.Errorf("%+v", info)
	}
	for i, plan := range d.plan(t, mem) {
		if plan != d.plans[i] {
			t.Errorf("%s: the plan differs from that of the RAM file", image.Disks[i].Name)
		}
	}
}
