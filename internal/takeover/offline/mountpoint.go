package offline

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mounted is a mounted file system.
type mounted struct{ source, kind string }

// mountAt finds what is mounted on a directory (proc(5), mountinfo).
func mountAt(dir string) (mounted, error) {
	var m mounted
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return m, fmt.Errorf("find mount: %w", err)
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return m, fmt.Errorf("find mount: %w", err)
	}
	root, options := "", ""
	for line := range strings.Lines(string(b)) {
		m1, m2, ok := strings.Cut(line, " - ")
		before, after := strings.Fields(m1), strings.Fields(m2)
		if !ok || len(before) < 6 || len(after) < 3 || unescape(before[4]) != abs {
			continue
		}
		// The last one is on top of the others.
		root, options, m = unescape(before[3]), before[5], mounted{source: unescape(after[1]), kind: after[0]}
	}
	switch {
	case m.kind == "":
		return m, fmt.Errorf("find mount: nothing is mounted on %s", abs)
	case root != "/":
		return m, fmt.Errorf("find mount: on %s is only %s of its file system: mount all of it (btrfs: -o subvolid=5)", abs, root)
	case strings.HasPrefix(options, "ro"):
		return m, fmt.Errorf("find mount: %s is mounted read-only", abs)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(abs, &st); err != nil {
		return m, fmt.Errorf("find mount: %w", err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return m, fmt.Errorf("find mount: %s is read-only: the file system may have had an error", abs)
	}
	return m, nil
}

// unescape undoes how mountinfo writes spaces, tabs, newlines and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
