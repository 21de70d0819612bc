package jbd2

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/ext4"
)

// FastCommits is what the area of fast commits holds for a transaction that was
// not committed yet.
type FastCommits struct {
	Tags int // tags that a mount would replay; 0 if there are none for that transaction
	// Err says why a recovery fails because of them, whether or not it has replayed the
	// transactions before them; nil if it does not fail.
	Err error
}

// ErrFastCommits says that a log holds fast commits, which only a mount can
// replay.
var ErrFastCommits = errors.New("the journal holds fast commits, which only a mount replays")

// Tags of fast commits (fs/ext4/fast_commit.h, EXT4_FC_TAG_*).
const (
	fastAddRange = 1
	fastDelRange = 2
	fastCreate   = 3
	fastLink     = 4
	fastUnlink   = 5
	fastInode    = 6
	fastPad      = 7
	fastTail     = 8
	fastHead     = 9

	fastTagSize = 4 // of tag and length, in bytes
)

// fastScanner is the state of ext4_fc_replay_scan (fs/ext4/fast_commit.c).
type fastScanner struct {
	expected  TID
	inodeSize int
	tags      int // read so far
	sum       uint32
	valid     int // tags up to the last valid tail
}

// fastCommits looks for fast commits that belong to a transaction.
func (l *Log) fastCommits(expected TID) (FastCommits, error) {
	f := &fastScanner{expected: expected, inodeSize: int(l.FS.Super.InodeSize)}
	if !l.Super.FastCommit {
		return FastCommits{}, nil
	}
	in := &reader{l: l}
	for p := l.Super.FastFirst; p <= l.Super.FastLast; p++ {
		if p == l.Super.Length { // a recovery reads beyond the journal, and fails
			return FastCommits{f.valid, errors.New("fast commits do not end with a tail tag")}, nil
		}
		b, err := in.block(p)
		if err != nil {
			return FastCommits{}, err
		}
		if p == l.Super.FastFirst && binary.LittleEndian.Uint16(b) != fastHead {
			break
		}
		more, err := f.block(b)
		if err != nil {
			return FastCommits{f.valid, err}, nil
		}
		if !more {
			break
		}
	}
	return FastCommits{Tags: f.valid}, nil
}

// block reads the tags in a block. more is false if nothing comes
// after it.
func (f *fastScanner) block(b []byte) (more bool, err error) {
	for at := 0; at <= len(b)-fastTagSize; {
		tag, size := binary.LittleEndian.Uint16(b[at:]), int(binary.LittleEndian.Uint16(b[at+2:]))
		end := at + fastTagSize + size
		if end > len(b) || !f.sizeValid(tag, size) {
			return f.stop(fmt.Errorf("fast commit: tag %d of %d bytes", tag, size))
		}
		value := b[at+fastTagSize : end]
		f.tags++
		switch tag {
		case fastHead:
			if features := binary.LittleEndian.Uint32(value); features != 0 {
				return false, fmt.Errorf("fast commit: unknown features %#x", features)
			}
			if TID(binary.LittleEndian.Uint32(value[4:])) != f.expected {
				return false, nil
			}
			f.sum = ext4.CRC32C(f.sum, b[at:end])
		case fastTail:
			f.sum = ext4.CRC32C(f.sum, b[at:at+fastTagSize+4]) // up to the checksum
			if TID(binary.LittleEndian.Uint32(value)) != f.expected || binary.LittleEndian.Uint32(value[4:]) != f.sum {
				return f.stop(fmt.Errorf("fast commit: %w", ext4.ErrChecksum))
			}
			f.valid, f.sum = f.tags, 0
		default:
			f.sum = ext4.CRC32C(f.sum, b[at:end])
		}
		at = end
	}
	return true, nil
}

// stop ends the scan at something invalid: that is an error, unless there was something
// valid before it.
func (f *fastScanner) stop(err error) (bool, error) {
	if f.valid > 0 {
		return false, nil
	}
	return false, err
}

// sizeValid reports whether the value of a tag may have a size, in bytes
// (ext4_fc_value_len_isvalid).
func (f *fastScanner) sizeValid(tag uint16, size int) bool {
	switch tag {
	case fastAddRange:
		return size == 16
	case fastDelRange:
		return size == 12
	case fastCreate, fastLink, fastUnlink:
		return size >= 8+1 && size <= 8+255
	case fastInode:
		return size >= 4+128 && size <= 4+f.inodeSize
	case fastPad:
		return true
	case fastTail:
		return size >= 8
	case fastHead:
		return size == 8
	}
	return false
}
