package demo

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/sparse"
	"understudy.dev/understudy/internal/lab/workload"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

const contrastName = "contrast"

// keepDisk keeps the disk as it is now, for the contrast. On a file system that shares
// blocks between files this copies no data; elsewhere it takes the time that the timeline
// shows, during the outage.
func (p *play) keepDisk() error {
	image := p.pair.Disks[0].Image
	p.copied = filepath.Join(p.dir, "fence.img")
	src, err := os.Open(image)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(p.copied, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err == nil {
		return nil
	}
	if err := dst.Truncate(imageBytes); err != nil {
		return err
	}
	return sparse.Copy(dst, src)
}

// contrast lets a second guest mount a copy-on-write view of the disk as it was at the
// fence, as the guest itself would after a reboot, and returns what it finds there.
func (p *play) contrast(ctx context.Context) ([]workload.Truth, error) {
	dead := p.pair.Partitions[0]
	active, _ := p.super.Sides()
	a, err := supervisor.StartAppliance(ctx, partition.Spec{
		Name: contrastName, Dir: p.dir, CPUs: dead.CPUs, VCPUs: 1, Memory: 512 << 20,
		Kernel: dead.Kernel, Initramfs: dead.Initramfs, Accel: active.Accel,
		Devices: []partition.Device{partition.Disk{Name: "data", Image: p.copied, Snapshot: true}},
	}, []wire.Disk{{Name: "data", Type: p.o.FS, Mount: serveDir}}, p.notice)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if err := a.Mount(ctx, "data"); err != nil {
		return nil, err
	}
	if err := a.Call(ctx, verbDigest, job{Dir: serveDir, Spec: p.spec()}, nil); err != nil {
		return nil, err
	}
	return p.read(contrastName, noticeFound)
}

// mustLose is how many bytes a mount without salvage must miss, or else the demo proves
// nothing: most of what was unsaved.
func (p *play) mustLose() int64 { return p.report.UnsavedBytes / 25 * 24 }

// judge compares what the contrast found with the truth.
func (p *play) judge(truth, found []workload.Truth) {
	result := workload.Compare(truth, found)
	c := &Contrast{
		BytesWrong: result.BytesWrong, FilesWrong: result.FilesWrong,
		FilesMissing: result.FilesMissing, SyncedWrong: result.SyncedWrong,
	}
	p.report.WithoutSalvage = c
	if c.BytesWrong < p.mustLose() {
		p.report.fail("only %s are missing or old on the disk as it was at the fence", mib(c.BytesWrong))
	}
	if c.SyncedWrong > 0 {
		p.report.fail("%d fsynced files are not on the disk as it was at the fence", c.SyncedWrong)
	}
	for _, f := range result.Findings {
		if f.Path == workload.ProbePath {
			return
		}
	}
	p.report.fail("what the client was served after the crash had been on the disk")
}

// atFence is called when the fence stands.
func (p *play) atFence() {
	p.fence = time.Now()
	if !p.o.Contrast {
		return
	}
	p.kept = p.keepDisk()
	p.keptAt = time.Now()
}
