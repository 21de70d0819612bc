package offline

import (
	"fmt"
	"strings"
	"time"

	"understudy.dev/understudy/dead/pagecache"
)

// noneOf returns the error that none of the file systems that the kernel had is that of the disk: a notMounted, unless
// some could not be read.
func (a *application) noneOf(names []string, id pagecache.UUID, faults error) error {
	had := "no disk mounted"
	if len(names) > 0 {
		had = strings.Join(names, ", ") + " mounted, and not that"
	}
	what := fmt.Sprintf("open disk %s: it has file system %v: the dead kernel had %s", a.Disk, id, had)
	if faults != nil {
		return fmt.Errorf("%s, as far as its memory can be read: %w", what, faults)
	}
	return &notMounted{what: what}
}

// notMounted is ErrNotMounted with what the kernel had, and what Run has found on the disk.
type notMounted struct {
	what    string
	uuid    string    // of the disk's file system
	unclean error     // why that was not unmounted, as it says itself; nil if it was
	died    time.Time // when the kernel died, by its own clock; zero if that is not known
}

func (n *notMounted) Error() string { return n.what }

func (n *notMounted) Unwrap() error { return ErrNotMounted }
