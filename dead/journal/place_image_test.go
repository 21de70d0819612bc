package journal_test

import (
	"testing"

	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestPlace brings everything of a crash to its disks without a mount, and checks that another program
// reads each file as it was.
func TestPlace(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			spec := fixture.Basic
			spec.Kernel = name
			image := fixture.Get(t, spec)
			c := openCache(t, image)
			for _, d := range image.Disks {
				disk := copyOf(t, d.Image)
				r, err := journal.Plan(c, superOf(t, c, d), disk)
				if err != nil {
					t.Fatal(err)
				}
				r.Place = true
				report, err := r.Finish(disk)
				if err != nil {
					t.Fatalf("%s: %v", d.Name, err)
				}
				p := report.Placement
				if p == nil {
					t.Fatalf("%s: %v: no placement", d.Name, report.Case)
				}
				t.Logf("%s: %v: %d files placed, %d bytes, refused %v, %v; %d written; %v", d.Name, report.Case, len(p.Files), p.Bytes, p.Refused, p.Err,
					len(report.Written), report.Steps)
				if p.Err != nil || len(p.Refused) > 0 || len(p.Files) == 0 && d.Type == "ext4" {
					t.Errorf("%s: %d files have their places: %v, %v", d.Name, len(p.Files), p.Err, p.Refused)
				}
				fsck(t, disk.Name())
				compare(t, image, d, disk.Name(), report.Written)
			}
		})
	}
}
