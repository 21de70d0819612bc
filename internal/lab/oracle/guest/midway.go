//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"understudy.dev/understudy/internal/lab/fixture/boot"
	"understudy.dev/understudy/internal/lab/oracle/page"
)

// pieces limits a disk's requests to 16 KiB: a throttled disk takes a request in one go,
// however large it is.
func pieces(disk string) error {
	device, err := boot.FindDisk(disk)
	if err != nil {
		return err
	}
	return os.WriteFile("/sys/block/"+filepath.Base(device)+"/queue/max_sectors_kb", []byte("16"), 0)
}

// midway waits until the sync is at the point that was ordered, or has ended.
func midway(p page.Page, w *page.Work) error {
	for begin := time.Now(); time.Since(begin) < 5*time.Second && p.Load(page.SyncEnded) == 0; {
		n, err := underWriteback()
		if err != nil {
			return err
		}
		p.Store(page.Writeback, uint32(n))
		if n >= w.Writeback && (!w.Commit || committing()) {
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	time.Sleep(time.Duration(w.SyncMicros) * time.Microsecond)
	return nil
}

// underWriteback returns how many KiB are under writeback.
func underWriteback() (int, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "Writeback:"); ok {
			var n int
			_, err := fmt.Sscan(value, &n)
			return n, err
		}
	}
	return 0, errors.New("no Writeback in /proc/meminfo")
}

// journalThread is the stat file of the journal's thread, once it is found.
var journalThread string

// committing reports whether the journal's thread waits for the disk: between commits it
// sleeps interruptibly (kjournald2).
func committing() bool {
	if journalThread == "" {
		all, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is good
		for _, comm := range all {
			if b, err := os.ReadFile(comm); err == nil && bytes.HasPrefix(b, []byte("jbd2/")) {
				journalThread = filepath.Join(filepath.Dir(comm), "stat")
			}
		}
		if journalThread == "" {
			return false
		}
	}
	b, err := os.ReadFile(journalThread)
	return err == nil && bytes.Contains(b, []byte(") D "))
}
