package oracle

import (
	"encoding/json"
	"reflect"
	"strings"

	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

// remade is what a tree is measured by that a rescue has made again from memory (docs/SALVAGE.md): what was not committed may have
// other inode numbers, names that were removed may be back, and a file, or its extended attributes, may be refused, by its name or
// its inode number.
type remade struct {
	places map[place]page.Entry  // without the rescue
	inode  map[uint64]page.Entry // likewise
	inodes map[uint64]bool
	paths  map[string]bool
	xattrs map[uint64]bool // inodes of which only the extended attributes are refused

	unrescued bool // the tree is without a rescue: a replay of btrfs's log gives directories in which it changes names the time of the replay
}

// remadeOf reads what a rescue refused of a tree whose paths begin below top.
func remadeOf(plain Tree, r *RescueReport, top string) *remade {
	out := &remade{places: plain.places(), inode: make(map[uint64]page.Entry), inodes: make(map[uint64]bool), paths: make(map[string]bool), xattrs: make(map[uint64]bool)}
	for _, e := range plain.Entries {
		out.inode[e.Ino] = e
	}
	var report struct {
		Refused []struct {
			Path       string `json:"path"`
			PathBase64 []byte `json:"path_base64"`
			Inode      uint64 `json:"inode"`
			Reason     string `json:"reason"`
		} `json:"refused"`
	}
	if json.Unmarshal(r.Report, &report) != nil {
		return out
	}
	for _, refused := range report.Refused {
		if strings.HasPrefix(refused.Reason, "its extended attributes ") {
			out.xattrs[refused.Inode] = true
			continue
		}
		if refused.Inode != 0 {
			out.inodes[refused.Inode] = true
		}
		for _, at := range []string{refused.Path, string(refused.PathBase64)} {
			if below, inside := strings.CutPrefix(at, top); at != "" && inside {
				out.paths[below] = true
			}
		}
	}
	return out
}

// refuses reports whether the rescue said that it could not bring a file.
func (r *remade) refuses(at string, inode uint64) bool {
	return r != nil && (r.paths[at] || r.inodes[inode])
}

// leftAs reports whether the rescue left a file as it was, or did not make it. It may have lost a name that it had before.
func (r *remade) leftAs(e page.Entry, made bool) bool {
	was := r.inode[e.Ino]
	was.Disk, was.Path, was.Nlink = e.Disk, e.Path, e.Nlink
	was.Pages, e.Pages = nil, nil // Sum is of all of them, and the walk has them by name
	return !made || reflect.DeepEqual(was, e)
}

// hadBefore reports whether a name that should not be there was in the same directory without a rescue, or was given to what had to
// make room.
func (r *remade) hadBefore(at string, found Tree) bool {
	if r == nil {
		return false
	}
	is := found.Entries[at]
	was, ok := r.places[found.place(at)]
	return ok && was.Ino == is.Ino && was.Mode&script.TypeMask == is.Mode&script.TypeMask || strings.Contains(at, ".displaced-")
}
