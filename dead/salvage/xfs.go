package salvage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy.dev/understudy/dead/pagecache"
)

// xfsSuper is what is read of the superblock of XFS, at the beginning of the disk
// (fs/xfs/libxfs/xfs_format.h, struct xfs_dsb; most significant byte first).
type xfsSuper struct {
	uuid     pagecache.UUID
	logStart int64 // of the log, in bytes
	logSize  int64 // in bytes
	realtime bool  // it has a section for files on another device
}

// xfsSuperSize is how many bytes of the superblock are read: a sector.
const xfsSuperSize = 512

var errNotXFS = errors.New("not an XFS file system")

func parseXFSSuper(b []byte) (xfsSuper, error) {
	var s xfsSuper
	if len(b) < xfsSuperSize || string(b[:4]) != "XFSB" {
		return s, errNotXFS
	}
	be := binary.BigEndian
	block, blockLog := int64(be.Uint32(b[4:])), b[120]
	groupLog, groupBlocks := b[124], uint64(be.Uint32(b[84:]))
	start, blocks := be.Uint64(b[48:]), int64(be.Uint32(b[96:]))
	s.uuid, s.realtime = pagecache.UUID(b[32:48]), be.Uint64(b[16:]) != 0 // sb_rblocks
	if blockLog < 9 || blockLog > 16 || block != 1<<blockLog || groupLog > 31 || groupBlocks == 0 || groupBlocks > 1<<groupLog {
		return s, fmt.Errorf("parse superblock: blocks of %d bytes, groups of %d: %w", block, groupBlocks, errNotXFS)
	}
	if start == 0 {
		return s, fmt.Errorf("its log is on another device: %w", ErrUnsupported)
	}
	group, within := start>>groupLog, start&(1<<groupLog-1)
	if group > 1<<32 || within >= groupBlocks {
		return s, fmt.Errorf("parse superblock: log at block %d of group %d: %w", within, group, errNotXFS)
	}
	s.logStart, s.logSize = int64(group*groupBlocks+within)*block, blocks*block
	return s, nil
}

// logBlock is the unit of the log, in bytes (BBSIZE).
const logBlock = 512

// eachRecord calls do with every record that has its header in the log, and with its
// LSN: the cycle in the upper half, the block in the lower
// (fs/xfs/libxfs/xfs_log_format.h, struct xlog_rec_header). A header says where it
// is, and to which file system it belongs. No block in the data of a record begins
// like a header, since each begins with the cycle.
func (s *xfsSuper) eachRecord(disk io.ReaderAt, do func(r pagecache.LogRecord, lsn uint64)) error {
	buf := make([]byte, 1<<20)
	be := binary.BigEndian
	for at := int64(0); at < s.logSize; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), s.logSize-at)]
		if _, err := disk.ReadAt(buf, s.logStart+at); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		for off := 0; off < len(buf); off += logBlock {
			b := buf[off : off+logBlock]
			r, err := pagecache.ParseLogRecord(b)
			if err != nil {
				continue
			}
			lsn := be.Uint64(b[16:])
			cycle, block := lsn>>32, lsn&(1<<32-1)
			if uint64(be.Uint32(b[4:])) != cycle || int64(block)*logBlock != at+int64(off) || !bytes.Equal(b[304:320], s.uuid[:]) {
				continue
			}
			do(r, lsn)
		}
	}
	return nil
}

// lastRecord finds the record that was written to the log last: the one with the
// highest cycle, and in that cycle the highest block. It also returns its LSN.
func (s *xfsSuper) lastRecord(disk io.ReaderAt) (last pagecache.LogRecord, highest uint64, err error) {
	found := false
	err = s.eachRecord(disk, func(r pagecache.LogRecord, lsn uint64) {
		if lsn >= highest {
			last, highest, found = r, lsn, true
		}
	})
	if err == nil && !found {
		err = errors.New("read log: no record in it: it was zeroed, or this is not the disk of the crash")
	}
	return last, highest, err
}

// checkXFS compares the log on a disk with what the dead kernel wrote to it: the
// last record on the disk must be one of the last records in memory, and no record that
// the kernel knew to be written may follow it. A recovery by another kernel adds its own
// record behind it. A kernel that has written none since its mount has none in memory: it knows where the last one is.
func (p *Plan) checkXFS(disk io.ReaderAt) error {
	on, err := p.xfsOn(disk)
	if err != nil {
		return err
	}
	if on.realtime {
		return fmt.Errorf("check disk: it has a realtime section, on another device: %w", ErrUnsupported)
	}
	last, lsn, err := on.lastRecord(disk)
	if err != nil {
		return fmt.Errorf("check disk: %w", err)
	}
	if !p.hasRecord(last) && (len(p.xfsRecords) > 0 || lsn != p.xfsLast) {
		return p.otherLog(fmt.Sprintf("%08x", last.CRC), "the file system was mounted since the crash, this is an older copy of it, or its kernel went on after memory was taken")
	}
	const blockMask = 1<<32 - 1
	for _, r := range p.xfsRecords {
		if r.Done && r.LogRecord != last && uint64(r.Previous) == lsn&blockMask {
			return &DiskError{
				Field: "last record of the log", Disk: fmt.Sprintf("%08x", last.CRC), Memory: fmt.Sprintf("%08x", r.CRC),
				Hint: "this is an older copy of it",
			}
		}
	}
	return nil
}

// hasRecord says whether memory has a record.
func (p *Plan) hasRecord(r pagecache.LogRecord) bool {
	return slices.ContainsFunc(p.xfsRecords, func(w pagecache.WrittenRecord) bool { return w.LogRecord == r })
}

func (p *Plan) otherLog(disk, hint string) error {
	return &DiskError{Field: "last record of the log", Disk: disk, Memory: "not among the log records", Hint: hint}
}

// xfsOn reads the superblock of a disk, which must be that of the plan.
func (p *Plan) xfsOn(disk io.ReaderAt) (*xfsSuper, error) {
	b := make([]byte, xfsSuperSize)
	if _, err := disk.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("check disk: read superblock: %w", err)
	}
	on, err := parseXFSSuper(b)
	if errors.Is(err, errNotXFS) {
		return nil, &DiskError{Field: "superblock", Disk: "missing", Memory: "present", Hint: "this is another disk, or its file system was overwritten"}
	}
	if err != nil {
		return nil, fmt.Errorf("check disk: %w", err)
	}
	if on.uuid != p.Super.UUID {
		return nil, &DiskError{Field: "uuid", Disk: on.uuid.String(), Memory: p.Super.UUID.String(), Hint: "this is another disk"}
	}
	return &on, nil
}

// descendsXFS checks that one of the last records that the dead kernel wrote is in the log
// of a disk that was mounted since.
func (p *Plan) descendsXFS(disk io.ReaderAt) error {
	on, err := p.xfsOn(disk)
	if err != nil {
		return err
	}
	found := false
	err = on.eachRecord(disk, func(r pagecache.LogRecord, _ uint64) { found = found || p.hasRecord(r) })
	if err != nil || found {
		return err
	}
	return p.otherLog("another", "this is an older copy, or so much was written to it since the crash that its log is all new")
}
