package agent

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/filewriter"
	"understudy.dev/understudy/internal/live/hint"
)

// open opens the top directory, as soon as the disk is mounted. The kernel reports a failed write once to everything that
// was open then; to what is opened later it reports only what nobody has been told yet (errseq_sample, lib/errseq.c).
func (m *mounted) open() (err error) {
	if m.before == "" {
		m.before = m.health().errors()
	}
	m.top, err = os.Open(m.Mount)
	return err
}

// close closes the top directory, which would keep the disk from being unmounted.
func (m *mounted) close() {
	if m.top != nil {
		_ = m.top.Close() // nothing was written to it
		m.top = nil
	}
}

func (m *mounted) health() health { return health{m.Disk, m.device} }

// save makes what was written to a mounted disk durable. Once that has failed, it fails for good: the kernel
// reports a failed write once and then treats the pages as clean (Documentation/filesystems/vfs.rst, "Handling errors
// during writeback"), so that the data is in memory only.
func (a *Agent) save(m *mounted) error {
	var err error
	if m.failed == "" {
		err = m.sync()
		if slices.ContainsFunc([]error{unix.EIO, unix.ENOSPC, unix.EDQUOT}, func(e error) bool { return errors.Is(err, e) }) {
			m.failed = err.Error()
			err = a.keep()
		}
		if err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	if m.failed != "" {
		err = errors.New(m.failed)
	} else if damage := m.damage(); damage != nil {
		err = damage
	}
	if err == nil {
		return nil
	}
	return hint.New("write what is unsaved of disk "+m.Name, err,
		"Some of it may be in this kernel's memory only. A takeover brings it over (understudy crash), and down --force keeps the memory for recover.")
}

func (m *mounted) sync() error {
	if m.top == nil {
		if err := m.open(); err != nil {
			return err
		}
	}
	return filewriter.SyncFS(m.top)
}

// damage is why a disk may lack something although it was synced without an error: its file system has found itself damaged,
// or takes no writes. An aborted journal need not count as an error before the next write.
func (m *mounted) damage() error {
	h := m.health()
	if now := h.errors(); now != "" && now != m.before {
		return fmt.Errorf("its file system has found itself damaged (%s)%s", now, h.refuses())
	}
	// btrfs has said so, and its top directory may be a subvolume that is read-only.
	if m.top == nil || readOnly(m.Options) || m.Type == "btrfs" {
		return nil
	}
	if err := m.top.Sync(); err != nil {
		return err
	}
	wrote := make(chan error, 1)
	go func() { wrote <- h.write() }()
	select {
	case err := <-wrote:
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EIO) {
			return fmt.Errorf("its file system takes no writes any more: %w", err)
		}
	case <-time.After(writeLimit): // it is frozen: the kernel has synced it (freeze_super, fs/super.c), and lets writes wait
	}
	return nil
}

// writeLimit is how long damage waits for a file to be made.
const writeLimit = 3 * time.Second
