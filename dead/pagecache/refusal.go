package pagecache

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// Reason says why data in memory is not taken.
type Reason int

// The reasons for a refusal.
const (
	Unreadable       Reason = iota + 1 // its memory is absent, or its address is wrong
	BadInode                           // the inode is implausible
	BadTree                            // a node of the xarray does not point back to its parent
	BadSlot                            // a slot of the xarray holds something other than a page
	DAX                                // the data is not in the page cache, but in persistent memory
	WrongMapping                       // the page belongs to another file, or to none
	WrongIndex                         // the page says it has another index in the file
	BadFolio                           // the size of the large folio is implausible
	NotUptodate                        // the page is not uptodate, and no block in it is known to be
	BadBuffers                         // the buffers of a page are implausible
	Poisoned                           // the memory of the page is broken (machine check)
	Encrypted                          // fscrypt: what is in memory is not what goes to the disk
	Verity                             // fsverity: the file cannot be written to
	Reserved                           // an inode of the file system itself
	Partial                            // a part of the file is not in memory, and the disk may have an older one
	WriteFailed                        // a write of the file to its disk failed while the kernel lived
	UnknownStructure                   // the kernel lays something out in a way not understood
)

var reasonNames = map[Reason]string{
	Unreadable:       "unreadable",
	BadInode:         "implausible inode",
	BadTree:          "damaged xarray",
	BadSlot:          "no page in slot",
	DAX:              "direct access file",
	WrongMapping:     "page of another file",
	WrongIndex:       "page of another index",
	BadFolio:         "implausible folio",
	NotUptodate:      "page not uptodate",
	BadBuffers:       "implausible buffers",
	Poisoned:         "broken memory",
	Encrypted:        "encrypted file",
	Verity:           "verity file",
	Reserved:         "reserved inode",
	Partial:          "only partly in memory",
	WriteFailed:      "a write of it failed",
	UnknownStructure: "unknown structure",
}

func (r Reason) String() string {
	if name, ok := reasonNames[r]; ok {
		return name
	}
	return fmt.Sprintf("reason %d", int(r))
}

// MarshalText makes reasons readable in reports.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Refusal is data that is in memory and is not taken. It is an error, so that
// walks can yield it in its place.
type Refusal struct {
	Inode addr.Ino
	Path  string     // from the top of the file system; empty if it was not looked for, or memory does not have it
	Index addr.Index // the first page
	Pages uint64     // how many pages at most; 0 if it is about the whole file
	Each  addr.Pages // the size of a page, if there are any
	Reason
	Cause error // more about it; may be nil
}

func (r *Refusal) Error() string { return fmt.Sprintf("refuse inode %d: %s", r.Inode, r.Why()) }

// Why returns what is refused of the file, and the reason.
func (r *Refusal) Why() string {
	s := r.Reason.String()
	if r.Pages > 0 {
		s = fmt.Sprintf("page %d (%d pages): %s", r.Index, r.Pages, s)
	}
	if r.Cause != nil {
		s += ": " + r.Cause.Error()
	}
	return s
}

// Span returns the bytes of the file that the refused pages hold, up to the largest size of a file;
// it is empty if the refusal is about the whole file.
func (r *Refusal) Span() addr.Span {
	most := r.Each.End(1 << 61)
	from := r.Each.Byte(min(r.Index, most))
	return addr.Span{Off: from, End: from + r.Each.Byte(min(addr.Index(r.Pages), most))}
}

func (r *Refusal) Unwrap() error { return r.Cause }
