package ram

import (
	"errors"
	"fmt"
	"strings"
)

// Info describes the file that memory comes from.
type Info struct {
	// Format names the format in words, such as "kdump-compressed (zlib)".
	Format string
	// Flattened says that the file is in makedumpfile's form for pipes.
	Flattened bool
	// Present is how many bytes of memory the file has; Excluded is how many bytes the
	// machine had that are known to be missing from the file.
	Present, Excluded uint64
	// Level is what makedumpfile was told to leave out, if LevelKnown is set: an ELF
	// core does not say.
	Level      DumpLevel
	LevelKnown bool
	// Incomplete says that the dumper ran out of space, and marked the file.
	Incomplete bool
	// Truncated says that the file has lost its end: what was there is missing, and
	// reading it is a Fault.
	Truncated bool
	// Live says that this is the memory of a running machine, which changes while it is
	// read: what is read of a file may be from different moments.
	Live bool
}

// DumpLevel is the value of makedumpfile's -d: the kinds of pages left out
// (makedumpfile.h, DL_EXCLUDE_*).
type DumpLevel uint32

// The bits of a DumpLevel. Zero pages are not missing from a kdump-compressed
// file: they share one page of the file (makedumpfile.c, write_kdump_pages_cyclic).
const (
	LevelZero         DumpLevel = 1 << iota // filled with zeros
	LevelCache                              // page cache without private data
	LevelCachePrivate                       // page cache with private data, such as buffers
	LevelUser                               // anonymous memory of processes
	LevelFree                               // free
)

// MissesCache reports whether page cache is known to have been excluded.
func (i Info) MissesCache() bool {
	return i.LevelKnown && i.Level&(LevelCache|LevelCachePrivate) != 0
}

// Cut reports whether the file is known to have less than its writer was told to put into
// it, whatever that was.
func (i Info) Cut() bool { return i.Incomplete || i.Truncated }

// Advice returns what an operator who misses files should know about the image, or
// "". For an ELF core there is advice only if memory was found to be excluded:
// the file does not say whether that was page cache.
func (i Info) Advice() string {
	const how = "dump again with -d 17 or 25, not -d 31 (bits 2 and 4 throw it away)"
	var out []string
	switch {
	case i.Truncated:
		out = append(out, "the dump is cut off, and what was in its end is missing: copy it again if there is a whole one")
	case i.Incomplete:
		out = append(out, "the dump is incomplete: its writer ran out of space, and what it had not written is missing")
	}
	switch {
	case i.MissesCache():
		out = append(out, fmt.Sprintf("page cache was excluded at dump time (dump level %d): %s", i.Level, how))
	case i.Excluded > 0 && !i.LevelKnown && !i.Cut():
		out = append(out, fmt.Sprintf("%d MiB were left out at dump time, at a level that the file does not tell; if page cache is missing: %s", i.Excluded>>20, how))
	}
	return strings.Join(out, "; ")
}

// ErrFormat is wrapped by errors about a file that is not the memory of a
// machine, is damaged, or is in a format that is not understood.
var ErrFormat = errors.New("not a memory image that can be read")

// FormatError says what a file is that cannot be read as memory.
type FormatError struct {
	Format string // what it was recognised as
	Reason string // what is wrong with it
	Hint   string // what the operator can do; may be empty
}

func (e *FormatError) Error() string {
	s := fmt.Sprintf("%v: %s: %s", ErrFormat, e.Format, e.Reason)
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

func (e *FormatError) Unwrap() error { return ErrFormat }

// malformed returns a FormatError.
func malformed(format, reason string, args ...any) error {
	return &FormatError{Format: format, Reason: fmt.Sprintf(reason, args...)}
}

// truncated returns the error for a file that ends too early.
func truncated(format string, want uint64, size int64) error {
	return &FormatError{
		Format: format,
		Reason: fmt.Sprintf("truncated: it should have at least %d bytes, and has %d", want, size),
		Hint:   "copy it again, or look whether the disk was full when it was made",
	}
}
