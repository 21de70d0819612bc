package wire

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
)

// What e2fsck says of inodes that it moves to lost+found or clears, and of those
// whose link count is wrong (e2fsck/problem.c: PR_3_UNCONNECTED_DIR, PR_4_UNATTACHED_INODE,
// PR_4_ZERO_LEN_INODE, PR_4_BAD_REF_COUNT).
var (
	unattached = regexp.MustCompile(`^Un(?:connected directory|attached) inode (\d+)`)
	cleared    = regexp.MustCompile(`^Unattached zero-length inode (\d+)`)
	references = regexp.MustCompile(`^Inode (\d+) ref count is (\d+), should be (\d+)\.`)
)

// maxSaid bounds the part of e2fsck's output that is kept, its end, in bytes. maxInodes bounds the inodes
// of each kind in the output that are kept.
const (
	maxSaid   = 64 << 10
	maxInodes = 64 << 10
)

// Checked returns what a run of e2fsck(8) with -f and -y did, from its output and the way its process
// ended. A file system that could not be repaired is an error, and must not be mounted.
func Checked(said []byte, ended error) (*Check, error) {
	c := &Check{Output: string(bytes.ToValidUTF8(said[max(0, len(said)-maxSaid):], nil))}
	c.read(said)
	var exit *exec.ExitError
	if errors.As(ended, &exit) {
		c.Status = exit.ExitCode()
	} else if ended != nil {
		return nil, ended
	}
	// The status is a sum (e2fsck(8)): 1 for errors that were corrected, 2 for the advice to
	// reboot, which is about a file system that is mounted.
	if c.Status&^3 != 0 {
		return nil, fmt.Errorf("e2fsck ended with status %d: %s", c.Status, c.Output)
	}
	return c, nil
}

// read finds in e2fsck's output the inodes without a name, and those with more names than
// links.
func (c *Check) read(said []byte) {
	for line := range bytes.Lines(said) { // of any length: all blocks that two files share are on one line
		c.take(&c.Lost, unattached, line)
		c.take(&c.Cleared, cleared, line)
		if m := references.FindSubmatch(line); m != nil {
			ino, err := strconv.ParseUint(string(m[1]), 10, 64)
			is, _ := strconv.ParseUint(string(m[2]), 10, 32)
			names, _ := strconv.ParseUint(string(m[3]), 10, 32)
			if err == nil && names > is && !slices.Contains(c.Lost, ino) {
				c.add(&c.Surplus, ino)
			}
		}
	}
}

// take adds the inode that a line names, if the line matches.
func (c *Check) take(to *[]uint64, what *regexp.Regexp, line []byte) {
	if m := what.FindSubmatch(line); m != nil {
		if ino, err := strconv.ParseUint(string(m[1]), 10, 64); err == nil {
			c.add(to, ino)
		}
	}
}

func (c *Check) add(to *[]uint64, ino uint64) {
	if len(*to) == maxInodes {
		c.More++
		return
	}
	*to = append(*to, ino)
}
