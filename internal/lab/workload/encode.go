package workload

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"unicode/utf8"
)

// The encoding is a JSON object per line and record, about 5.4 bytes for each page, and a last line that tells the
// number of records and the CRC-32C of all lines before it, so that a reader knows that it has everything without
// waiting for the end of a serial line that never ends.

// Bounds of a record, and of the line that holds the largest one with room for escapes in its path.
const (
	maxPath  = 4096        // bytes, as PATH_MAX
	maxPages = 190_000     // a file of 742 MiB
	maxLine  = 1024 * 1024 // bytes
)

// Errors of the decoder, apart from those of its reader. A stream that ends without its last line gives
// io.ErrUnexpectedEOF.
var (
	ErrBadRecord = errors.New("malformed truth record")
	ErrDamaged   = errors.New("truth records are damaged") // count or checksum of the last line do not fit
)

// wireTruth is one line. Path64 takes the place of Path for a name that is not UTF-8.
type wireTruth struct {
	Path   string `json:"p,omitempty"`
	Path64 []byte `json:"p64,omitempty"`
	Size   int64  `json:"n"`
	Mode   uint32 `json:"m"`
	SHA    []byte `json:"h,omitempty"`
	Pages  string `json:"c,omitempty"` // base64 of the CRCs, little-endian
	Synced bool   `json:"s,omitempty"`
	End    *int   `json:"end,omitempty"` // last line only: how many records
	Sum    uint32 `json:"sum,omitempty"` // last line only
}

// Encoder writes records to a stream. Close ends the stream, but does not close the writer.
type Encoder struct {
	w   io.Writer
	n   int
	sum uint32
}

// NewEncoder returns an Encoder that writes each record with one Write.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{w: w} }

// check reports whether a record may go over the line: its pages must fit its size, and neither they nor the path may
// be too many.
func (t *Truth) check() error {
	pages := int64(len(t.Pages))
	// The size may be any number, so nothing is added to it.
	switch {
	case len(t.Path) > maxPath:
		return fmt.Errorf("path of %d bytes: %w", len(t.Path), ErrBadRecord)
	case pages > maxPages:
		return fmt.Errorf("%q: %d pages: %w", t.Path, pages, ErrBadRecord)
	case t.Size < 0 || t.Size > pages*PageSize || t.Size <= (pages-1)*PageSize:
		return fmt.Errorf("%q: %d pages for %d bytes: %w", t.Path, pages, t.Size, ErrBadRecord)
	}
	return nil
}

// Encode writes a record. It refuses, with ErrBadRecord and nothing written, one whose pages do not fit its size, or of
// a file over 742 MiB.
func (e *Encoder) Encode(t Truth) error {
	if err := t.check(); err != nil {
		return fmt.Errorf("encode truth: %w", err)
	}
	crcs := make([]byte, 0, 4*len(t.Pages))
	for _, c := range t.Pages {
		crcs = binary.LittleEndian.AppendUint32(crcs, c)
	}
	w := wireTruth{Path: t.Path, Size: t.Size, Mode: uint32(t.Mode), SHA: t.SHA256[:], Synced: t.Synced,
		Pages: base64.StdEncoding.EncodeToString(crcs)}
	if !utf8.ValidString(t.Path) {
		w.Path, w.Path64 = "", []byte(t.Path)
	}
	if err := e.line(w); err != nil {
		return err
	}
	e.n++
	return nil
}

// Close writes the last line.
func (e *Encoder) Close() error { return e.line(wireTruth{End: &e.n, Sum: e.sum}) }

func (e *Encoder) line(w wireTruth) error {
	line, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("encode truth: %w", err)
	}
	e.sum = crc32.Update(e.sum, castagnoli, line)
	if _, err := e.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write truth: %w", err)
	}
	return nil
}

// Decoder reads what an Encoder wrote. It takes lines that end in CR LF too, as a terminal makes them.
type Decoder struct {
	r    *bufio.Reader
	n    int
	sum  uint32
	done bool
}

// NewDecoder returns a Decoder. It may read ahead, unless r is a *bufio.Reader: then it stops after the last line.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{r: bufio.NewReader(r)} }

// Next returns the next record, and io.EOF after the last line.
func (d *Decoder) Next() (Truth, error) {
	if d.done {
		return Truth{}, io.EOF
	}
	line, err := d.readLine()
	if err != nil {
		return Truth{}, fmt.Errorf("read truth record %d: %w", d.n, err)
	}
	var w wireTruth
	if err := json.Unmarshal(line, &w); err != nil {
		return Truth{}, fmt.Errorf("read truth record %d: %w: %w", d.n, ErrBadRecord, err)
	}
	if w.End != nil {
		if *w.End != d.n || w.Sum != d.sum {
			return Truth{}, fmt.Errorf("read truth: %d records of %d: %w", d.n, *w.End, ErrDamaged)
		}
		d.done = true
		return Truth{}, io.EOF
	}
	t, err := w.truth()
	if err != nil {
		return Truth{}, fmt.Errorf("read truth record %d: %w", d.n, err)
	}
	d.n++
	d.sum = crc32.Update(d.sum, castagnoli, line)
	return t, nil
}

// readLine returns the next line without its end, which must be there.
func (d *Decoder) readLine() ([]byte, error) {
	var line []byte
	for {
		part, err := d.r.ReadSlice('\n')
		if len(line)+len(part) > maxLine+2 {
			return nil, fmt.Errorf("line over %d bytes: %w", maxLine, ErrBadRecord)
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		line = line[:len(line)-1]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		return line, nil
	}
}

// truth checks a line's fields and turns them into a record.
func (w *wireTruth) truth() (Truth, error) {
	t := Truth{Path: w.Path, Size: w.Size, Mode: fs.FileMode(w.Mode), Synced: w.Synced}
	if w.Path64 != nil {
		t.Path = string(w.Path64)
	}
	crcs, err := base64.StdEncoding.DecodeString(w.Pages)
	if err != nil {
		return Truth{}, fmt.Errorf("page checksums: %w: %w", ErrBadRecord, err)
	}
	if len(crcs)%4 != 0 || len(w.SHA) != len(t.SHA256) {
		return Truth{}, fmt.Errorf("%q: length of a checksum: %w", t.Path, ErrBadRecord)
	}
	copy(t.SHA256[:], w.SHA)
	for ; len(crcs) > 0; crcs = crcs[4:] {
		t.Pages = append(t.Pages, binary.LittleEndian.Uint32(crcs))
	}
	return t, t.check()
}

// ReadAll reads the records up to the last line.
func ReadAll(r io.Reader) ([]Truth, error) {
	var records []Truth
	d := NewDecoder(r)
	for {
		t, err := d.Next()
		switch {
		case err == nil:
			records = append(records, t)
		case errors.Is(err, io.EOF) && d.done:
			return records, nil
		default:
			return nil, err
		}
	}
}
