package nfsd

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Export is one line of exports(5) in a form that we are sure to understand.
type Export struct {
	Path    string
	Clients []exportClient
}

// exportClient is a host, or several, that an export is for, and its options.
type exportClient struct {
	Name string // a host, a network, a netgroup or a pattern
	FSID string // of the option fsid: a number, a UUID, or root
}

// ParseExport reads a line of exports(5): a path, and clients with their options
// in parentheses. Quotes, escapes and default options are refused. So is a
// client without fsid: without it, a file's handle names the file system by its
// device number, which differs on the other side, or by its UUID, for which
// mountd must search all disks.
func ParseExport(line string) (Export, error) {
	fields := strings.Fields(line)
	if strings.ContainsAny(line, `"\#`) || len(fields) < 2 {
		return Export{}, fmt.Errorf("%q is not a path followed by clients, without quotes, escapes and comments", line)
	}
	e := Export{Path: fields[0]}
	if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path {
		return Export{}, fmt.Errorf("%q is not a clean absolute path", e.Path)
	}
	for _, f := range fields[1:] {
		name, rest, ok := strings.Cut(f, "(")
		options, end := strings.CutSuffix(rest, ")")
		if !ok || !end || name == "" || strings.ContainsAny(options, "()") || name[0] == '-' {
			return Export{}, fmt.Errorf("%q is not a client with its options in parentheses", f)
		}
		c := exportClient{Name: name}
		for o := range strings.SplitSeq(options, ",") {
			if v, ok := strings.CutPrefix(o, "fsid="); ok {
				c.FSID = v
			}
		}
		if c.FSID == "" {
			return Export{}, fmt.Errorf("client %q: %w", f, ErrNoFSID)
		}
		e.Clients = append(e.Clients, c)
	}
	return e, nil
}

// ErrNoFSID is returned for an export whose files would have other handles after a takeover.
var ErrNoFSID = errors.New("it has no fsid")

// number returns the fsid as file handles contain it, if it is a number.
// fsid=root is 0 (exports(5)).
func (c exportClient) number() (uint32, bool) {
	if c.FSID == "root" {
		return 0, true
	}
	n, err := strconv.ParseUint(c.FSID, 0, 32)
	return uint32(n), err == nil
}
