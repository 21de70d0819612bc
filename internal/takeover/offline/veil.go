package offline

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/takeover"
)

// veilText begins each sector of a veil, for people who look at the disk.
const veilText = takeover.Veil + " Apply the same image again to finish it: "

// veilOf returns the text of a commit's veil. No other commit, to whatever disk, has the same.
func veilOf(id Identity) string {
	return fmt.Sprintf("%sfile system %s, commit %s, from %s, Linux %s", veilText, id.UUID, id.Sum, id.Image, id.Kernel)
}

// veil returns what takes the place of the superblock while a disk is in between. It is not
// a file system, so that the disk cannot be mounted or checked by accident.
func (r *record) veil() []Region {
	text := []byte(r.Veil)
	if r.Veil == "" {
		text = []byte(veilText + r.Identity.Image + ", Linux " + r.Identity.Kernel)
	}
	text = append(text[:min(len(text), sector-1)], '\n')
	text = append(text, make([]byte, sector-len(text))...)
	var out []Region
	for _, g := range r.Before {
		out = append(out, Region{Off: g.Off, Data: bytes.Repeat(text, len(g.Data)/sector)})
	}
	return out
}

// veiled reports whether any sector of a superblock has its veil.
func veiled(now, veils []Region) bool {
	for i, v := range veils {
		for at := 0; at < len(v.Data); at += sector {
			if bytes.Equal(now[i].Data[at:at+sector], v.Data[at:at+sector]) {
				return true
			}
		}
	}
	return false
}

// unveiled checks that a disk without a record is not in between.
func (d *Disk) unveiled() error {
	is, err := InBetween(d.section())
	if err == nil && is {
		err = hint.New("disk "+d.path, inBetween{errors.New("a commit to it was broken off, and the rest of it is not in " + d.work)},
			"Name the directory of that run with --work, and finish it: understudy salvage apply --finish --disk "+d.path+".")
	}
	return err
}

// InBetween reports whether a commit to a disk, or to a partition, was interrupted, which its veil
// shows. It looks for the veil in all sectors where superblocks are, since some of them may have been
// written back already: in the first four sectors, and in eight from 64 KiB on.
func InBetween(s device.Section) (bool, error) {
	for _, places := range [][2]int64{{0, 4 * sector}, {64 << 10, 64<<10 + 8*sector}} {
		b := make([]byte, max(0, min(s.Len(), places[1])-places[0]))
		if _, err := s.ReadAt(b, places[0]); len(b) > 0 && err != nil {
			return false, fmt.Errorf("read disk: %w", err)
		}
		for at := range slices.Chunk(b, sector) {
			if bytes.HasPrefix(at, []byte(veilText)) {
				return true, nil
			}
		}
	}
	return false, nil
}

// inBetween makes an error a takeover.ErrInBetween, too.
type inBetween struct{ error }

func (e inBetween) Unwrap() error { return e.error }

func (inBetween) Is(target error) bool { return target == takeover.ErrInBetween }

// put writes regions to the disk, durably.
func (d *Disk) put(regions []Region) error {
	for _, g := range regions {
		if _, err := d.WriteAt(g.Data, g.Off); err != nil {
			return fmt.Errorf("write superblock: %w", err)
		}
	}
	return d.Sync()
}
