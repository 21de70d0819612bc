package takeover

import (
	"context"
	"fmt"
	"io"
	"time"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/live/wire"
)

// Machine is what a takeover does to the running side and its devices.
type Machine interface {
	// Fence proves that the dead side cannot write. Nothing else is called
	// if it fails.
	Fence(ctx context.Context) error
	// Image returns the fenced image of a disk, which is valid until its HandOver. For a disk of
	// Options.Layered it is what the understudy sees, and is valid from HandOver until Mount.
	Image(ctx context.Context, disk string) (Image, error)
	// Check checks and repairs the file system of a fenced disk, before its HandOver. It does so
	// on a draft, so that an error leaves the disk as it was, unless it is an error of writing
	// to the disk. errors.ErrUnsupported means that it cannot be done here: the understudy does
	// it (Mount).
	Check(ctx context.Context, disk string) (*wire.Check, error)
	// HandOver gives a fenced disk to the understudy, which activates what lies under its file
	// system.
	HandOver(ctx context.Context, disk string) error
	// Mount makes the understudy mount a disk that it was handed; with check, after its file
	// system was checked and repaired. found is the result of that check, else nil.
	Mount(ctx context.Context, disk string, check bool) (found *wire.Check, err error)
	// Name makes the understudy give the inodes that a check has left without a name the names
	// that they had.
	Name(ctx context.Context, r wire.NameRequest) (wire.NameResult, error)
	// Staging returns memory that the understudy can read and nobody else uses. Its first n
	// bytes can be written; Staging fails if there is no room for them.
	Staging(n int64) ([]byte, error)
	// Apply makes the understudy write a plan whose encoding and data are in Staging.
	Apply(ctx context.Context, r wire.ApplyRequest) (wire.ApplyResult, error)
	// Start starts the services of the role, and names those that are not ready within a time.
	// It fails if it is better not to go live without them.
	Start(ctx context.Context, within time.Duration) ([]wire.Unready, error)
	// GoLive lets the network reach the understudy. ErrUnreached means that the understudy
	// serves, and will be reached later.
	GoLive(ctx context.Context) error
	// Acquaint tells the understudy who the dead side's peers are. The peers are told nothing
	// yet.
	Acquaint(ctx context.Context, p wire.Peers) (wire.AcquaintResult, error)
	// Announce makes the understudy tell the network where its address is now.
	Announce(ctx context.Context) error
	// Tell makes the understudy tell those peers that their connections are gone, rate of them
	// per second.
	Tell(ctx context.Context, rate int) (wire.TellResult, error)
	// Sync makes what was applied durable.
	Sync(ctx context.Context) error
}

// Image is a disk that nobody else writes. Sync makes durable what was written.
type Image interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Salvager reads the dead side's memory.
type Salvager interface {
	// Examine finds the file system of an image in the dead memory, and
	// checks that the image is as that kernel left it.
	Examine(image Image) (Remains, error)
}

// Remains are one file system's unsaved files in the dead memory.
type Remains interface {
	// Finish writes to the image what must be there before anything mounts it: the dead kernel's
	// last commit. If it fails, the file system is what an ordinary crash leaves, or has all of
	// the commit in its log; nothing else is written then, since a file would get only a part of
	// what it was to be: a *GivenUp.
	Finish(image Image) (Commit, error)
	// Size is how many bytes of staging Gather fills at most. It is valid after Finish.
	Size() int64
	// Gather puts the unsaved bytes into staging and says whose they are.
	Gather(staging []byte) (Gathered, error)
	// Names returns the names that the dead kernel had for the inodes which a check has found
	// without a name, or with too many.
	Names(found *wire.Check) wire.NameRequest
	// Refusal is what a side could not do to a file.
	Refusal(f wire.Failure) Refusal
}

// Commit is what Finish did.
type Commit struct {
	Disk     string `json:"disk"`
	Case     string `json:"case"`     // how log and memory fitted together
	Sequence uint32 `json:"sequence"` // of the transaction; 0 if there was nothing to commit
	Blocks   int    `json:"blocks"`   // of metadata in it
	Revoked  int    `json:"revoked"`  // blocks whose older versions it revokes
	Data     int64  `json:"data"`     // bytes of files that went to their places
	Files    int    `json:"files"`    // files that are complete with these
	Replayed int    `json:"replayed"` // blocks that the replay of the log wrote
	// Placed is how many files had no place on the disk for what was unsaved, and got one;
	// PlacedBytes is how much of them was written, in bytes. Unplaced says why other files got
	// none, if there are any: these are written after the mount.
	Placed      int    `json:"placed"`
	PlacedBytes int64  `json:"placed_bytes"`
	Unplaced    string `json:"unplaced,omitempty"`
	// Open is how many handles were open, and Proven that the audit found what their
	// operations had done so far to be sound.
	Open   int  `json:"open"`
	Proven bool `json:"proven"`
	// Mended lists what was completed, or taken back, of these operations for that.
	Mended []string `json:"mended,omitempty"`
	// Moved is how many files had extent trees that were mid-update: the check might lose some
	// of their blocks, which are written again from memory. Cut is how many files were being
	// truncated: this is finished after the check, which would harm them.
	Moved int `json:"moved,omitempty"`
	Cut   int `json:"cut,omitempty"`
	// Check says why e2fsck had to run before the mount, and Found what it printed; both
	// are empty if it did not.
	Check string `json:"check,omitempty"`
	Found string `json:"found,omitempty"`
	// Shared says why the mount waits until it has seen that no other machine has the file
	// system (mmp); empty if it does not wait.
	Shared string `json:"shared,omitempty"`

	Steps []wire.PhaseTime `json:"-"`
}

func (c *Commit) String() string {
	s := fmt.Sprintf("last commit: %s", c.Case)
	if c.Blocks > 0 {
		s += fmt.Sprintf(", %d blocks as transaction %d", c.Blocks, c.Sequence)
	}
	if c.Data > 0 {
		s += fmt.Sprintf("; %.1f MiB of files to their places", float64(c.Data)/(1<<20))
	}
	if c.Placed > 0 {
		s += fmt.Sprintf("; %d files got their places", c.Placed)
	}
	if c.Unplaced != "" {
		s += "; after the mount: " + c.Unplaced
	}
	if c.Proven && c.Open > 0 {
		s += fmt.Sprintf("; %d operations in flight, %d things completed or taken back", c.Open, len(c.Mended))
	}
	if c.Check != "" {
		s += "; checked before the mount: " + c.Check
	}
	if c.Shared != "" {
		s += "; the mount waits to see whether another machine has it mounted (MMP): " + c.Shared
	}
	if c.Moved > 0 {
		s += fmt.Sprintf("; %d files whose extent trees were mid-update are restored from memory", c.Moved)
	}
	if c.Cut > 0 {
		s += fmt.Sprintf("; the truncation of %d files is finished after the check", c.Cut)
	}
	return s
}

// Gathered is what Gather found.
type Gathered struct {
	Files   []wire.File
	Attrs   []wire.Attr // their further attributes, where the file system's log is not finished
	Used    int64       // bytes of staging
	Bytes   int64       // unsaved bytes in it
	Refused []Refusal
}

// Refusal is data of the dead memory that is not brought to a disk.
type Refusal struct {
	Disk       string `json:"disk,omitempty"`        // of a pair, by name
	Path       string `json:"path,omitempty"`        // in the disk's file system, as the dead kernel had it; empty if that is not known
	PathBase64 []byte `json:"path_base64,omitempty"` // likewise, if it is not UTF-8
	Inode      uint64 `json:"inode,omitempty"`       // likewise; 0 if it is not about one file
	Pages      uint64 `json:"pages,omitempty"`       // at most this many; 0 means the whole file
	Reason     string `json:"reason"`
}

// GivenUp says that the last commit was refused, and names the files that are therefore as an ordinary crash leaves
// them.
type GivenUp struct {
	Err   error
	Files []Refusal
}

func (g *GivenUp) Error() string { return "the last commit: " + g.Err.Error() }

func (g *GivenUp) Unwrap() error { return g.Err }

// Refused is all that is not brought to the disk.
func (g *GivenUp) Refused() []Refusal { return append([]Refusal{{Reason: g.Error()}}, g.Files...) }

// String returns the refusal on one line.
func (r Refusal) String() string {
	s := r.Reason
	switch at := inventory.TextOf(r.Path, r.PathBase64); {
	case at != "":
		s = inventory.Printable(at) + ": " + s
	case r.Inode != 0:
		s = fmt.Sprintf("inode %d: %s", r.Inode, s)
	}
	if r.Disk != "" {
		s = "disk " + r.Disk + ": " + s
	}
	return s
}
