package offline

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// redo describes a file of the work directory that has everything that is to be written to
// a disk. It takes the place of an overlay if nothing has to be done in a guest. The pieces
// of data come first, back to back, and then their list (wire.EncodeBlocks), which says for
// each piece where it goes on the disk, and where it is in the file.
type redo struct {
	List int64  `json:"list"` // where the list begins, in bytes
	Size int64  `json:"size"` // of the file
	Sum  uint32 `json:"sum"`  // CRC-32C of all of it
}

// redoName is the name of that file.
const redoName = "redo"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (d *Disk) redo() string { return filepath.Join(d.work, redoName) }

// newRedo creates the file, empty, and returns it with the list that it will have. It reserves room
// for the data and the list, if the file system there can do that: without room, nothing is begun.
func (d *Disk) newRedo(raw []Raw) (f *os.File, list []byte, err error) {
	runs, _, err := place(raw, 0, d.Size)
	if err != nil {
		return nil, nil, err
	}
	list = wire.EncodeBlocks(runs)
	if f, err = os.OpenFile(d.redo(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return nil, nil, fmt.Errorf("write %s: %w", redoName, err)
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, max(rawBytes(raw)+int64(len(list)), 1))
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil, errors.Join(fmt.Errorf("write %s: %w", redoName, err), f.Close())
	}
	return f, list, nil
}

// makeRedo writes what is to be written to the disk, except for the data for free blocks, into the
// new file, durably, closes it, and notes it in the record.
func (d *Disk) makeRedo(f *os.File, raw []Raw, list []byte) error {
	made, err := writeRedo(f, raw, list)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", redoName, err)
	}
	d.left.Redo = made
	return syncDir(d.work)
}

// veiledRaw returns what is to be written to the disk, with the veil in place of the
// superblock. The new superblock goes into the record.
func (d *Disk) veiledRaw(raw []Raw) []Raw {
	d.left.After = nil
	for _, g := range d.left.Before {
		after := Region{Off: g.Off, Data: append([]byte(nil), g.Data...)}
		for _, w := range raw {
			overlay(after.Data, after.Off, w.Data, w.Off)
		}
		d.left.After = append(d.left.After, after)
	}
	veils := d.left.veil()
	out := make([]Raw, len(raw))
	for i, w := range raw {
		out[i] = w
		for _, v := range veils {
			if v.Off < w.Off+int64(len(w.Data)) && w.Off < v.Off+int64(len(v.Data)) {
				out[i].Data = append([]byte(nil), out[i].Data...)
				overlay(out[i].Data, w.Off, v.Data, v.Off)
			}
		}
	}
	return out
}

func rawBytes(all []Raw) (n int64) {
	for _, w := range all {
		n += int64(len(w.Data))
	}
	return n
}

// overlay copies to under those bytes of over that lie on it. underAt and overAt are offsets on the disk.
func overlay(under []byte, underAt int64, over []byte, overAt int64) {
	from := max(underAt, overAt)
	to := min(underAt+int64(len(under)), overAt+int64(len(over)))
	if from < to {
		copy(under[from-underAt:to-underAt], over[from-overAt:])
	}
}

// writeRedo writes the file.
func writeRedo(f io.Writer, raw []Raw, list []byte) (*redo, error) {
	sum := crc32.New(castagnoli)
	out := bufio.NewWriterSize(io.MultiWriter(f, sum), 1<<20)
	made := &redo{}
	for _, w := range raw {
		if _, err := out.Write(w.Data); err != nil {
			return nil, err
		}
		made.List += int64(len(w.Data))
	}
	if _, err := out.Write(list); err != nil {
		return nil, err
	}
	made.Size = made.List + int64(len(list))
	err := out.Flush()
	made.Sum = sum.Sum32()
	return made, err
}

// redoAll writes all that the file has to the disk, and makes it durable. The file stays:
// until it is removed, this can be done again.
func (d *Disk) redoAll() error {
	f, err := os.Open(d.redo())
	if err != nil {
		return err
	}
	defer f.Close()
	runs, err := d.left.Redo.read(f, d.Size)
	if err != nil {
		return fmt.Errorf("read %s: %w", redoName, err)
	}
	buf := make([]byte, 1<<20)
	for _, r := range runs {
		for done := int64(0); done < r.Len; {
			b := buf[:min(int64(len(buf)), r.Len-done)]
			if _, err := f.ReadAt(b, r.Staged+done); err != nil {
				return fmt.Errorf("read %s: %w", redoName, err)
			}
			if _, err := d.WriteAt(b, r.Off+done); err != nil {
				return fmt.Errorf("write disk: %w", err)
			}
			done += int64(len(b))
		}
	}
	return d.Sync()
}

var errRedo = errors.New("its size, checksum or block list is wrong")

// read checks the size and the checksum of the file, and returns its list. disk is the size of the disk, in bytes.
func (r *redo) read(f *os.File, disk int64) ([]wire.Run, error) {
	sum := crc32.New(castagnoli)
	n, err := io.Copy(sum, io.NewSectionReader(f, 0, r.Size))
	if err != nil {
		return nil, err
	}
	if n != r.Size || sum.Sum32() != r.Sum {
		return nil, errRedo
	}
	list := make([]byte, r.Size-r.List)
	if _, err := f.ReadAt(list, r.List); err != nil {
		return nil, err
	}
	runs, err := wire.DecodeBlocks(list)
	if err != nil {
		return nil, err
	}
	for _, run := range runs {
		if run.Staged > r.List-run.Len || run.Off > disk-run.Len {
			return nil, errRedo
		}
	}
	return runs, nil
}

// check says whether a record's numbers fit together.
func (r *redo) check() error {
	if r.List < 0 || r.Size < r.List || r.Size-r.List > maxList {
		b, _ := json.Marshal(r)
		return fmt.Errorf("impossible offset or size of the redo file's list: %s", b)
	}
	return nil
}

// maxList bounds the list of what is to be written, in bytes.
const maxList = 1 << 30
