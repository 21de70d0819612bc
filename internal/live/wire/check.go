package wire

import (
	"bufio"
	"bytes"
	"regexp"
	"slices"
	"strconv"
)

// What e2fsck says of inodes that it moves to lost+found or takes away, and of those
// whose links it counts (e2fsck/problem.c: PR_3_UNCONNECTED_DIR, PR_4_UNATTACHED_INODE,
// PR_4_ZERO_LEN_INODE, PR_4_BAD_REF_COUNT).
var (
	unattached = regexp.MustCompile(`^Un(?:connected directory|attached) inode (\d+)`)
	cleared    = regexp.MustCompile(`^Unattached zero-length inode (\d+)`)
	references = regexp.MustCompile(`^Inode (\d+) ref count is (\d+), should be (\d+)\.`)
)

// Read finds in e2fsck's output the inodes without a name, and those with more names than
// links.
func (c *Check) Read(said []byte) {
	lines := bufio.NewScanner(bytes.NewReader(said))
	for lines.Scan() {
		c.Lost = appendInode(c.Lost, unattached, lines.Bytes())
		c.Cleared = appendInode(c.Cleared, cleared, lines.Bytes())
		if m := references.FindSubmatch(lines.Bytes()); m != nil {
			ino, err := strconv.ParseUint(string(m[1]), 10, 64)
			is, _ := strconv.ParseUint(string(m[2]), 10, 32)
			names, _ := strconv.ParseUint(string(m[3]), 10, 32)
			if err == nil && names > is && !slices.Contains(c.Lost, ino) {
				c.Surplus = append(c.Surplus, ino)
			}
		}
	}
}

// appendInode appends the inode that a line tells of, if it does.
func appendInode(to []uint64, what *regexp.Regexp, line []byte) []uint64 {
	if m := what.FindSubmatch(line); m != nil {
		if ino, err := strconv.ParseUint(string(m[1]), 10, 64); err == nil {
			return append(to, ino)
		}
	}
	return to
}
