package disk

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Member is a disk's part in an array of md, as its superblock says.
type Member struct {
	Array    string // its UUID
	Level    int    // of RAID
	Disks    int    // how many the array is made for
	Off, Len int64  // of the data, in bytes
}

// ErrNoMember says that a disk has no superblock of md.
var ErrNoMember = errors.New("no member of an array of md")

const mdMagic = 0xa92b4efc // MD_SB_MAGIC, include/uapi/linux/raid/md_p.h

// Array finds the superblock of md on a disk of size bytes: version 1.1 is at its beginning, 1.2 at
// 4 KiB, 1.0 and 0.90 at its end (drivers/md/md.c, super_1_load and super_90_load). It fails with
// ErrNoMember if there is none.
func Array(r io.ReaderAt, size int64) (Member, error) {
	b := make([]byte, 256)
	for _, at := range []int64{0, 4096, (size/sector - 16) &^ 7 * sector} {
		if at < 0 || at > size-int64(len(b)) {
			continue
		}
		if _, err := r.ReadAt(b, at); err != nil {
			return Member{}, fmt.Errorf("read superblock of md: %w", err)
		}
		m, err := member1(b, at/sector)
		if err == nil || !errors.Is(err, ErrNoMember) {
			return m.within(size, err)
		}
	}
	at := size&^(64<<10-1) - 64<<10
	if at < 0 {
		return Member{}, ErrNoMember
	}
	if _, err := r.ReadAt(b, at); err != nil {
		return Member{}, fmt.Errorf("read superblock of md: %w", err)
	}
	m, err := member90(b)
	return m.within(size, err)
}

func (m Member) within(size int64, err error) (Member, error) {
	if err == nil && (m.Off < 0 || m.Len <= 0 || m.Off > size-m.Len || m.Disks < 1) {
		err = fmt.Errorf("superblock of md makes no sense: %d disks, data of %d bytes at %d of a disk of %d", m.Disks, m.Len, m.Off, size)
	}
	if err != nil {
		return Member{}, err
	}
	return m, nil
}

// member1 reads the fields of struct mdp_superblock_1 (md_p.h), which must say that it is at sector at.
func member1(b []byte, at int64) (Member, error) {
	le := binary.LittleEndian
	if le.Uint32(b) != mdMagic || le.Uint32(b[4:]) != 1 || le.Uint64(b[144:]) != uint64(at) {
		return Member{}, ErrNoMember
	}
	off, n := le.Uint64(b[128:]), le.Uint64(b[80:])
	if off > 1<<53 || n > 1<<53 {
		return Member{}, fmt.Errorf("superblock of md makes no sense: data of %d sectors at sector %d", n, off)
	}
	if off <= uint64(at) && uint64(at) < off+n { // md refuses it, too
		return Member{}, fmt.Errorf("superblock of md makes no sense: it is in sector %d, and so are data, of %d sectors at sector %d", at, n, off)
	}
	return Member{
		Array: hex.EncodeToString(b[16:32]), Level: int(int32(le.Uint32(b[72:]))), Disks: int(le.Uint32(b[92:])),
		Off: int64(off) * sector, Len: int64(n) * sector,
	}, nil
}

// member90 reads the fields of struct mdp_superblock_s, in the byte order of x86. Its size is in KiB.
func member90(b []byte) (Member, error) {
	le := binary.LittleEndian
	if le.Uint32(b) != mdMagic || le.Uint32(b[4:]) != 0 || le.Uint32(b[8:]) != 90 {
		return Member{}, ErrNoMember
	}
	return Member{
		Array: hex.EncodeToString(b[20:24]) + hex.EncodeToString(b[52:64]), Level: int(int32(le.Uint32(b[28:]))),
		Disks: int(le.Uint32(b[40:])), Len: int64(le.Uint32(b[32:])) << 10,
	}, nil
}
