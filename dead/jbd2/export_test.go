package jbd2

import "encoding/binary"

// Features of a journal's superblock, as they are on the disk.
const (
	CompatChecksum      = compatChecksum
	IncompatRevoke      = incompatRevoke
	Incompat64Bit       = incompat64Bit
	IncompatAsyncCommit = incompatAsyncCommit
	IncompatCsumV2      = incompatCsumV2
	IncompatCsumV3      = incompatCsumV3
	IncompatFastCommit  = incompatFastCommit
)

// SetFeatures gives the journal of a disk other features, as a kernel does with
// an empty one (fs/jbd2/journal.c, jbd2_journal_set_features).
func SetFeatures(d Disk, compat, incompat uint32) error {
	return EditSuper(d, func(b []byte) {
		binary.BigEndian.PutUint32(b[0x24:], compat)
		binary.BigEndian.PutUint32(b[0x28:], incompat)
		b[0x50] = 4
	})
}

// EditSuper changes the superblock of a disk's journal and computes its checksum.
func EditSuper(d Disk, edit func([]byte)) error {
	l, err := Open(d)
	if err != nil {
		return err
	}
	b, err := l.ReadJournal(0)
	if err != nil {
		return err
	}
	edit(b)
	binary.BigEndian.PutUint32(b[0xfc:], superChecksum(b))
	return l.WriteJournal(0, b)
}

// WriteJournal writes a block of the journal.
func (l *Log) WriteJournal(p Pos, b []byte) error {
	w := &writer{l: l}
	if err := w.journal(p, b); err != nil {
		return err
	}
	return w.flush()
}

// ReadJournal reads a block of the journal.
func (l *Log) ReadJournal(p Pos) ([]byte, error) { return (&reader{l: l}).block(p) }

// Encode lays a transaction out, commit block last.
func (l *Log) Encode(at Start, t *Transaction) [][]byte {
	e := l.Super.encode(at, t, t.Time)
	return append(e.blocks, e.commit)
}

// SealTail computes the checksum of a descriptor or revoke block.
func (l *Log) SealTail(b []byte) { l.Super.putTail(b) }

// SealCommit computes the checksum of a commit block of version 2 or 3.
func (l *Log) SealCommit(b []byte) {
	if l.Super.tailed() {
		binary.BigEndian.PutUint32(b[16:], l.Super.commitChecksum(b))
	}
}
