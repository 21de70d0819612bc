package journal_test

import (
	"os"
	"testing"
	"time"

	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
)

// syncs counts and times the syncs of a file.
type syncs struct {
	*os.File
	took time.Duration
	n    int
}

func (s *syncs) Sync() error {
	begin := time.Now()
	err := s.File.Sync()
	s.took += time.Since(begin)
	s.n++
	return err
}

var _ jbd2.Disk = (*syncs)(nil)

// BenchmarkRescue finishes the last commit of 20,000 new files. The time per 1,000 blocks of
// metadata excludes the syncs, which are reported separately.
func BenchmarkRescue(b *testing.B) {
	image := fixture.Get(b, fixture.Many)
	c := openCache(b, image)
	d := image.Disks[0]
	s := superOf(b, c, d)
	var plan, finish, waited time.Duration
	var report *journal.Report
	count := 0
	for b.Loop() {
		b.StopTimer()
		disk := &syncs{File: copyOf(b, d.Image)}
		b.StartTimer()
		begin := time.Now()
		r, err := journal.Plan(c, s, disk)
		if err != nil {
			b.Fatal(err)
		}
		plan += time.Since(begin)
		begin = time.Now()
		if report, err = r.Finish(disk); err != nil {
			b.Fatal(err)
		}
		finish += time.Since(begin) - disk.took
		waited += disk.took
		count = disk.n
	}
	per := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(float64(report.Blocks), "blocks")
	b.ReportMetric(per(plan), "ms/plan")
	b.ReportMetric(per(finish), "ms/finish")
	b.ReportMetric((per(plan)+per(finish))*1000/float64(report.Blocks), "ms/1000blocks")
	b.ReportMetric(float64(count), "syncs")
	b.ReportMetric(per(waited), "ms/syncs")
}
