package inventory

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// Report is the machine-readable form of an inventory. Byte ranges are pairs of
// offset and length.
type Report struct {
	Kernel      KernelReport       `json:"kernel"`
	FileSystems []FileSystemReport `json:"filesystems"`
	Complete    bool               `json:"complete"` // nothing was refused or missed
	Stages      []StageReport      `json:"stages"`
}

// KernelReport names the dead kernel.
type KernelReport struct {
	Release string `json:"release"`
}

// StageReport is a step and how long it took, in milliseconds.
type StageReport struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`
}

// FileSystemReport describes a file system.
type FileSystemReport struct {
	Type    string          `json:"type"`
	Device  string          `json:"device"`
	UUID    string          `json:"uuid"`
	Server  string          `json:"server,omitempty"` // the server that the files are on; paths are those on the server
	Files   []FileReport    `json:"files"`
	Refused []RefusedReport `json:"refused,omitempty"` // whole inodes
	Faults  []string        `json:"faults,omitempty"`  // what could not be walked to its end
}

// FileReport describes a file. Path and PathBase64 are alternatives: the second
// is for names that are not UTF-8.
type FileReport struct {
	Path         string          `json:"path,omitempty"`
	PathBase64   []byte          `json:"path_base64,omitempty"`
	Links        []LinkReport    `json:"links,omitempty"` // other paths of the same file
	Inode        uint64          `json:"inode"`
	Generation   uint32          `json:"generation"`
	Size         int64           `json:"size"`
	Mode         string          `json:"mode"` // permissions, octal
	UID          uint32          `json:"uid"`
	GID          uint32          `json:"gid"`
	Mtime        time.Time       `json:"mtime"`
	State        State           `json:"state"`
	Uncommitted  bool            `json:"uncommitted,omitempty"` // the disk may have an older size, and lack bytes that are clean
	UnsavedFor   *float64        `json:"unsaved_seconds,omitempty"`
	UnsavedBytes int64           `json:"unsaved_bytes"`
	Ranges       []Range         `json:"ranges"` // unsaved
	Clean        []Range         `json:"clean,omitempty"`
	Absent       []Range         `json:"absent,omitempty"` // not in memory; on the disk, or holes
	Holes        []Range         `json:"holes,omitempty"`  // known to be zeros
	Refused      []RefusedReport `json:"refused"`

	Written *WrittenReport `json:"written,omitempty"`
}

// WrittenReport says what an extraction wrote of a file.
type WrittenReport struct {
	Name       string `json:"name,omitempty"` // below the directory; empty if nothing was written
	NameBase64 []byte `json:"name_base64,omitempty"`
	Links      int    `json:"links,omitempty"` // how many of its other paths were made, as hard links
	SHA256     string `json:"sha256,omitempty"`
	// Of is "file" if the hash is of the whole file, with what is missing as
	// zeros, or "ranges" if it is of the bytes from memory alone, one after the
	// other, because the file is too large to be hashed.
	Of      string `json:"sha256_of,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// LinkReport is a path, in one form or the other.
type LinkReport struct {
	Path       string `json:"path,omitempty"`
	PathBase64 []byte `json:"path_base64,omitempty"`
}

// RefusedReport is data that is in memory and was not taken.
type RefusedReport struct {
	Inode  uint64 `json:"inode,omitempty"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Reason string `json:"reason"`
	Detail string `json:"detail,omitempty"`
}

// Range is a pair of offset and length, in bytes.
type Range [2]int64

// Ranges is the form of spans in a report.
func Ranges(in []addr.Span) []Range {
	out := make([]Range, len(in))
	for i, s := range in {
		out[i] = Range{s.Off, s.Len()}
	}
	return out
}

// Text returns s if it is UTF-8, or else its bytes.
func Text(s string) (string, []byte) {
	if utf8.ValidString(s) {
		return s, nil
	}
	return "", []byte(s)
}

// TextOf undoes Text.
func TextOf(s string, raw []byte) string {
	if raw != nil {
		return string(raw)
	}
	return s
}

// Printable quotes names from a dead kernel that would affect a terminal.
func Printable(s string) string {
	if !utf8.ValidString(s) || s != strings.TrimSpace(s) || strings.HasPrefix(s, `"`) ||
		strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// PathText returns the path of a report on one line: base64 is marked as such.
func (f *FileReport) PathText() string {
	if f.PathBase64 != nil {
		return "base64:" + base64.StdEncoding.EncodeToString(f.PathBase64)
	}
	return f.Path
}

// NewReport begins a report about an image.
func NewReport(m *Image) *Report {
	return &Report{Kernel: KernelReport{Release: m.Kernel.Release}, FileSystems: []FileSystemReport{}, Complete: true}
}

// Add adds what was found in a file system, and returns its entry.
func (r *Report) Add(f *FileSystem, found Found) *FileSystemReport {
	out := FileSystemReport{Type: f.Super.Type, Device: f.Device, Server: f.Server, Files: make([]FileReport, 0, len(found.Files))}
	if (f.Super.UUID != pagecache.UUID{}) {
		out.UUID = f.Super.UUID.String()
	}
	for _, file := range found.Files {
		out.Files = append(out.Files, file.Report())
	}
	for _, refusal := range found.Refused {
		out.Refused = append(out.Refused, refusedReport(refusal, 0))
	}
	for _, fault := range found.Faults {
		out.Faults = append(out.Faults, fault.Error())
	}
	r.Complete = r.Complete && found.Complete()
	r.FileSystems = append(r.FileSystems, out)
	return &r.FileSystems[len(r.FileSystems)-1]
}

// Time adds the stages of an image, which end with the report.
func (r *Report) Time(m *Image) {
	r.Stages = []StageReport{}
	for _, s := range m.Stages {
		ms := float64(s.Took) / float64(time.Millisecond)
		r.Stages = append(r.Stages, StageReport{Name: s.Name, MS: math.Round(ms*1000) / 1000})
	}
}

// Report describes the file.
func (f *File) Report() FileReport {
	out := FileReport{
		Inode: uint64(f.Ino), Generation: f.Generation, Size: f.Size,
		Mode: fmt.Sprintf("%04o", f.Mode&0o7777), UID: f.UID, GID: f.GID, Mtime: f.Mtime.UTC(),
		State: f.State, Uncommitted: f.Uncommitted, UnsavedBytes: f.UnsavedBytes(), Ranges: Ranges(Spans(f.Unsaved)),
		Clean: Ranges(Spans(f.Clean)), Refused: []RefusedReport{},
	}
	out.Path, out.PathBase64 = Text(f.Label())
	for _, link := range f.Links {
		text, raw := Text(link)
		out.Links = append(out.Links, LinkReport{text, raw})
	}
	if f.Age >= 0 {
		seconds := f.Age.Seconds()
		out.UnsavedFor = &seconds
	}
	for _, r := range f.Refused {
		out.Refused = append(out.Refused, refusedReport(r, f.Size))
	}
	return out
}

func refusedReport(r *pagecache.Refusal, size int64) RefusedReport {
	span := RefusedSpan(r, size)
	out := RefusedReport{Offset: span.Off, Length: span.Len(), Reason: r.Reason.String()}
	if size == 0 {
		out.Inode = uint64(r.Inode)
	}
	if r.Cause != nil {
		out.Detail = r.Cause.Error()
	}
	return out
}
