// Package audit proves that a set of changed blocks takes a consistent ext3 or
// ext4 file system to a consistent one, in time that depends on what they touch
// and not on the size of the disk.
//
// It is for the last transaction of a dead kernel: operations that were in flight may be
// half done in it. A full check of the file system would find that, but
// takes as long as the file system is large. The audit assumes that the state before is
// consistent, which is what a journal guarantees, and checks only the difference:
// each rule of a full check (e2fsck(8)) is applied to what changed, by counting
// before and after. Each block in use has one owner,
// an inode has as many links as names, and groups count what they have free.
//
// # Caveats
//
// A file system is clean only if all of it is proven. Anything that is not understood
// is named as a reason against it. The free counts in the superblock are not looked at:
// a mount computes them anew. The content of files is not metadata; under
// data=journal it is among the changed blocks, and may be anything.
package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Verdict is the outcome of an audit.
type Verdict struct {
	Clean bool
	// Reasons are the first contradictions, and what is not understood; empty if
	// Clean.
	Reasons []string
	// Foreign says that the change itself contradicts nothing: the reasons are things that are not understood,
	// are too much for the audit, or were wrong before the change.
	Foreign bool
	// Damaged says what is wrong that no operation in flight explains, however far it had come; empty if nothing is.
	Damaged string
	Touched Counts
}

// Counts tell how much was looked at.
type Counts struct {
	Blocks      int // that differ
	Inodes      int // that differ, or whose blocks do
	Directories int // those of the inodes that are directories
	Entries     int // of directories, in blocks that differ
	Groups      int // whose bitmaps or counts differ
	Freed       uint64
	Allocated   uint64 // clusters, as Freed: blocks without bigalloc
	Read        int    // blocks, each counted as often as it was needed
}

const (
	// maxReasons is how many contradictions are reported.
	maxReasons = 12
	// minReads and readsPerBlock bound the work: a file system that needs more is
	// not proven. An inode that is touched costs a few blocks, its directory's
	// index some hundred.
	minReads      = 1 << 16
	readsPerBlock = 1 << 8
	// maxPieces bounds the extents and names in the blocks that are read.
	maxPieces = 1 << 21
)

// errTooMuch says that the bounds of the work are exceeded.
var errTooMuch = errors.New("it touches more blocks than the audit may read")

// readError is a failure to read the disk, which says nothing of the file system.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// Check judges the file system on a disk with the changed blocks in place of the
// disk's own. old is the disk after a replay of its log, with the file data that
// is ordered before the transaction; changed has blocks of the file system by
// number, each of the size of a block, with their final checksums. Check
// modifies neither. An error means that the disk cannot be read, or has no file
// system that can be judged.
func Check(old io.ReaderAt, changed map[addr.Block][]byte) (Verdict, error) {
	return Memory{}.Check(old, changed)
}

func (c *checker) result() (Verdict, error) {
	if c.failed != nil {
		return Verdict{}, fmt.Errorf("audit: %w", c.failed)
	}
	c.verdict.Clean = len(c.verdict.Reasons) == 0
	c.verdict.Touched.Blocks = len(c.different)
	c.verdict.Touched.Inodes = len(c.inodes)
	c.verdict.Touched.Groups = len(c.groups)
	c.verdict.Touched.Read = c.budget.spent
	return c.verdict, nil
}

// checker is an audit under way.
type checker struct {
	old, new *view
	budget   *budget
	verdict  Verdict
	failed   error // failure to read

	different map[addr.Block]struct{} // blocks that differ
	against   *view                   // what old is compared with to find them; new, except in excuse
	unclaimed unclaimed               // those of them that no inode looked at so far owns
	strays    map[uint64][]uint32     // see apart
	tables    []tableBlock
	groups    map[uint32]struct{} // touched
	inodes    map[addr.Ino]*inode // touched
	list      []*inode            // the same; see all
	blank     []inode             // allocated in advance, for more of them

	oldRuns, newRuns []run              // blocks that touched inodes own
	attributes       map[addr.Block]int // how many more inodes use a block of attributes

	torn map[addr.Block][]byte // see mapper; nil in an audit

	added *added // of CheckAdded; else nil

	memory Memory

	edges   map[edge]int         // how many more such entries there are
	places  map[addr.Ino][]place // new entries, by the inode that they name
	orphans struct{ old, new map[addr.Ino]source }
}

func newChecker(s ext4.Super, old io.ReaderAt, changed map[addr.Block][]byte) *checker {
	b := &budget{}
	b.renew(len(changed))
	after := newView(s, old, changed, b)
	return &checker{
		old: newView(s, old, nil, b), new: after, against: after, budget: b,
		different:  make(map[addr.Block]struct{}),
		groups:     make(map[uint32]struct{}),
		inodes:     make(map[addr.Ino]*inode),
		attributes: make(map[addr.Block]int),
		edges:      make(map[edge]int),
		places:     make(map[addr.Ino][]place),
	}
}

// note records the outcome of a step and reports whether to go on.
func (c *checker) note(err error) bool {
	if err == nil {
		return c.more()
	}
	if failed, ok := errors.AsType[*readError](err); ok {
		c.failed = failed
		return false
	}
	if errors.Is(err, errTooMuch) {
		c.verdict.Foreign = c.verdict.Foreign || len(c.verdict.Reasons) == 0
		c.verdict.Reasons = append(c.verdict.Reasons, errTooMuch.Error())
		c.failed = nil
		c.budget.spent = c.budget.limit + 1
		return false
	}
	c.verdict.Foreign = errors.As(err, new(*foreignError)) && (c.verdict.Foreign || len(c.verdict.Reasons) == 0)
	c.verdict.Reasons = append(c.verdict.Reasons, err.Error())
	return c.more()
}

// foreignError says what is not understood.
type foreignError struct{ what string }

func (e *foreignError) Error() string { return e.what }

func foreignf(format string, args ...any) error { return &foreignError{fmt.Sprintf(format, args...)} }

// asItWas wraps an error about the state before the change as a foreignError: the change did not cause it.
func asItWas(err error) error {
	if _, failed := errors.AsType[*readError](err); failed || errors.Is(err, errTooMuch) {
		return err
	}
	return foreignf("as it was: %v", err)
}

// more reports whether there is a point in looking further.
func (c *checker) more() bool {
	return c.failed == nil && len(c.verdict.Reasons) < maxReasons && c.budget.spent <= c.budget.limit
}

// run carries out all steps. Each one relies on what the earlier ones found to be
// in order, so that run ends with the first step that finds a contradiction.
func (c *checker) run(changed map[addr.Block][]byte) {
	c.steps(
		func() { c.superblock(changed) },
		func() { c.classify(changed) },
		c.slots,
		c.readOrphans,
		c.walkAll,
		c.claimRest,
		c.checkAttributes,
		c.checkOwners,
		c.checkInodes,
		c.checkDirectories,
		c.checkLinks,
		c.checkOrphans,
		c.checkGroups,
	)
}

func (c *checker) steps(all ...func()) {
	for _, step := range all {
		if step(); !c.more() || len(c.verdict.Reasons) > 0 {
			return
		}
	}
}

// all returns the touched inodes, sorted by number.
func (c *checker) all() []*inode {
	byNumber := func(a, b *inode) int { return cmp.Compare(a.number, b.number) }
	if !slices.IsSortedFunc(c.list, byNumber) {
		// Not sorted in place: a caller may be ranging over the list.
		c.list = slices.SortedFunc(slices.Values(c.list), byNumber)
	}
	return c.list
}

// sorted returns the keys of a map in order.
func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
