package nfsd

import (
	"fmt"
	"strconv"
	"strings"
)

// tableEntry is an export in exportfs's table: for one client, with all its
// options written out.
type tableEntry struct {
	path, client string
	options      []string
}

// parseTable reads exportfs's table (putexportent of nfs-utils, support/nfs): a
// line is path, tab, client and all options in parentheses. Other lines are
// left out.
func parseTable(text string) []tableEntry {
	var out []tableEntry
	for line := range strings.Lines(text) {
		path, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		client, options, ok2 := strings.Cut(rest, "(")
		options, ok3 := strings.CutSuffix(options, ")")
		if ok && ok2 && ok3 {
			out = append(out, tableEntry{path, client, strings.Split(options, ",")})
		}
	}
	return out
}

// exportFlags maps the options in the table to flags of an export
// (include/uapi/linux/nfsd/export.h). A flag that is not set is in the table too, by its opposite, which is 0 here.
var exportFlags = map[string]uint32{
	"ro": 0x1, "insecure": 0x2, "root_squash": 0x4, "all_squash": 0x8, "async": 0x10, "wdelay": 0x20,
	"nordirplus": 0x40, "security_label": 0x80, "nohide": 0x200, "no_subtree_check": 0x400,
	"insecure_locks": 0x800, "crossmnt": 0x4000, "no_acl": 0x8000, "pnfs": 0x20000,

	"rw": 0, "secure": 0, "no_root_squash": 0, "no_all_squash": 0, "sync": 0, "no_wdelay": 0,
	"hide": 0, "subtree_check": 0, "secure_locks": 0, "nocrossmnt": 0, "acl": 0, "no_pnfs": 0,
}

const (
	flagFSID = 0x2000 // NFSEXP_FSID
	authSys  = 1      // AUTH_SYS, RFC 5531
)

// optionsOf returns an export's options as the kernel reads them (svc_export_parse,
// fs/nfsd/export.c): flags, user and group of nobody, and fsid; and the security
// flavours with their flags. It returns false if there is any option that we could
// not pass on as mountd does.
func optionsOf(table []tableEntry, path, client string) (string, bool) {
	for _, e := range table {
		if e.path == path && e.client == client {
			return e.encode()
		}
	}
	return "", false
}

func (e tableEntry) encode() (string, bool) {
	var flags uint32
	numbers := map[string]int64{"fsid": -1, "anonuid": -1, "anongid": -1}
	secured := false
	for _, o := range e.options {
		name, value, _ := strings.Cut(o, "=")
		if f, ok := exportFlags[o]; ok {
			flags |= f
			continue
		}
		if _, ok := numbers[name]; ok {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return "", false
			}
			numbers[name] = n
			continue
		}
		if o != "sec=sys" || secured {
			return "", false
		}
		secured = true // the flags that follow are its own, and there is no other
	}
	for _, n := range numbers {
		if n < 0 {
			return "", false
		}
	}
	flags |= flagFSID
	s := fmt.Sprintf("%d %d %d %d", flags, numbers["anonuid"], numbers["anongid"], numbers["fsid"])
	if secured {
		s += fmt.Sprintf(" secinfo 1 %d %d", authSys, flags)
	}
	return s, true
}
