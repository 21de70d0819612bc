// Package audit proves that a set of changed blocks takes a consistent ext3 or
// ext4 file system to a consistent one, in time that depends on what they touch
// and not on the size of the disk.
//
// It is for the last transaction of a dead kernel: operations that were in flight may be
// half done in it. A full check of the file system would find out, but
// takes as long as the file system is large. Here the state before is taken to be
// consistent, which is what a journal guarantees, and only the difference is
// checked: each rule that a full check applies (e2fsck(8)) is applied to what
// changed, by counting on both sides. Each block in use has one owner,
// an inode has as many links as names, and groups count what they have free.
//
// # Caveats
//
// A file system is clean only if all of it is proven. What is not understood is a
// reason against, by name. The free counts in the superblock are not looked at: a
// mount computes them anew. The content of files is not metadata; under
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

// Verdict is what came of an audit.
type Verdict struct {
	Clean bool
	// Reasons are the first contradictions, and what is not understood; empty if
	// Clean.
	Reasons []string
	// Foreign says that nothing that the change did contradicts itself: the reasons are what is not understood,
	// or too much, or was so before.
	Foreign bool
	// Damaged says what no operation in flight explains, however far it had come; empty: nothing of that kind.
	Damaged string
	Touched Counts
}

// Counts tell how much was looked at.
type Counts struct {
	Blocks      int // that differ
	Inodes      int // that differ, or whose blocks do
	Directories int // of them
	Entries     int // of directories, in blocks that differ
	Groups      int // whose bitmaps or counts differ
	Freed       uint64
	Allocated   uint64 // blocks, as Freed
	Read        int    // blocks, each as often as it was needed
}

const (
	// maxReasons is how many contradictions are reported.
	maxReasons = 12
	// minReads and readsPerBlock bound the work: a file system that needs more is
	// not proven. An inode that is touched costs a few blocks, its directory's
	// index some hundred.
	minReads      = 1 << 16
	readsPerBlock = 1 << 8
	// maxPieces is how many extents and names there may be in them.
	maxPieces = 1 << 21
)

// errTooMuch says that the bounds of the work are reached.
var errTooMuch = errors.New("it touches more blocks than the audit may read")

// readError is a failure to read the disk, which says nothing of the file system.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// Check judges the file system on a disk with the changed blocks in place of its
// own. old is the disk as after a replay of its log, with the blocks of files
// that are ordered before the transaction; changed has blocks of the file system
// by number, each of the size of a block, with the checksums that they are to
// have. It changes neither. An error means that the disk cannot be read, or is no
// file system that could be judged.
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
	failed   error // of reading

	different map[addr.Block]struct{} // blocks that are not as they were
	against   *view                   // which blocks these are; new, but for excuse
	unclaimed unclaimed               // those of them that belong to no inode looked at so far
	strays    map[uint64][]uint32     // see apart
	tables    []tableBlock
	groups    map[uint32]struct{} // touched
	inodes    map[addr.Ino]*inode // touched
	list      []*inode            // the same; see all
	blank     []inode             // for more of them

	oldRuns, newRuns []run              // blocks that touched inodes own
	attributes       map[addr.Block]int // by how much more often a block of attributes is used

	torn map[addr.Block][]byte // see mapper; nil in an audit

	added *added // of CheckAdded; else nil

	memory Memory

	edges   map[edge]int         // by how much more often an entry is there
	places  map[addr.Ino][]place // of entries that were not there before, by what they are for
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

// note takes the outcome of a step and reports whether to go on.
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

// asItWas is an error of the state before the change: nothing that the change did.
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

// run goes through all steps. Each takes for granted what those before it found
// in order, so that it ends with the first that finds a contradiction.
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

// all are the inodes that are touched, by number.
func (c *checker) all() []*inode {
	byNumber := func(a, b *inode) int { return cmp.Compare(a.number, b.number) }
	if !slices.IsSortedFunc(c.list, byNumber) {
		// A list that somebody goes over stays as it is.
		c.list = slices.SortedFunc(slices.Values(c.list), byNumber)
	}
	return c.list
}

// sorted returns the keys of a map in order.
func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
