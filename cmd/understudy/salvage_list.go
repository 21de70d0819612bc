package main

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/pagecache"
)

func listCommand() *cobra.Command {
	var s selection
	var asJSON bool
	var sortBy string
	cmd := &cobra.Command{
		Use:   "list IMAGE...",
		Short: "List the files that a dead kernel had not saved",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			order, err := fileOrder(sortBy)
			if err != nil {
				return err
			}
			hurry()
			c, err := s.open(args, false)
			if err != nil {
				return err
			}
			defer c.close()
			for _, l := range c.found {
				slices.SortStableFunc(l.Files, order)
			}
			if asJSON {
				c.fill()
				c.report.Time(c.image)
				err = writeJSON(cmd.OutOrStdout(), c.report)
			} else {
				err = c.table(cmd.OutOrStdout(), s.all)
			}
			if err != nil {
				return err
			}
			return c.verdict()
		},
	}
	s.flags(cmd)
	cmd.Flags().BoolVar(&s.all, "all", false, "list all files that are cached, also those that are saved")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print for programs")
	cmd.Flags().StringVar(&sortBy, "sort", "path", "by path, size, unsaved, age, inode or mtime; numbers in descending order but for inode")
	return cmd
}

// fileOrder returns how to compare files by a key. Any key but path is in descending order.
func fileOrder(key string) (func(a, b *inventory.File) int, error) {
	keys := map[string]func(a, b *inventory.File) int{
		"path":    func(a, b *inventory.File) int { return strings.Compare(a.Label(), b.Label()) },
		"size":    func(a, b *inventory.File) int { return cmp.Compare(b.Size, a.Size) },
		"unsaved": func(a, b *inventory.File) int { return cmp.Compare(b.UnsavedBytes(), a.UnsavedBytes()) },
		"age":     func(a, b *inventory.File) int { return cmp.Compare(b.Age, a.Age) },
		"inode":   func(a, b *inventory.File) int { return cmp.Compare(a.Ino, b.Ino) },
		"mtime":   func(a, b *inventory.File) int { return b.Mtime.Compare(a.Mtime) },
	}
	if order, ok := keys[key]; ok {
		return order, nil
	}
	return nil, fmt.Errorf("sort by %q: choose path, size, unsaved, age, inode or mtime", key)
}

// table prints files as ls -l would.
func (c *chosen) table(w io.Writer, all bool) error {
	out := bufio.NewWriter(w)
	rows := [][]string{{"MODE", "OWNER", "SIZE", "UNSAVED", "AGE", "STATE", "FS", "INODE", "GENERATION", "PATH"}}
	files, uncommitted, unsaved := 0, 0, int64(0)
	for _, l := range c.found {
		device := inventory.Printable(l.Device)
		for _, f := range l.Files {
			files++
			unsaved += f.UnsavedBytes()
			if f.State == inventory.Uncommitted {
				uncommitted++
			}
			rows = append(rows, []string{
				modeText(f.Mode), number(f.UID) + ":" + number(f.GID), number(f.Size), number(f.UnsavedBytes()),
				ageText(f.Age), string(f.State), device, number(f.Ino), number(f.Generation), inventory.Printable(f.Label()),
			})
		}
	}
	if files > 0 {
		columns(out, rows, "llrrrllrrl")
	}
	kind := "unsaved file"
	if all {
		kind = "cached file"
	}
	fmt.Fprintf(out, "%s, %s unsaved", plural(files, kind), bytesText(unsaved))
	if len(c.found) > 0 {
		fmt.Fprintf(out, ", on %s", inventory.Printable(c.devices()))
	}
	if uncommitted > 0 {
		fmt.Fprintf(out, "; %d of them were written, but not committed: the disk may lack what was written, or have an older size", uncommitted)
	}
	fmt.Fprintln(out)
	return out.Flush()
}

// columns prints rows with each column as wide as its widest cell, aligned to the
// left or right as the letters of align say.
func columns(w *bufio.Writer, rows [][]string, align string) {
	width := make([]int, len(align))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	var line []byte
	for _, row := range rows {
		line = line[:0]
		for i, cell := range row {
			pad := width[i] - len(cell)
			if align[i] == 'r' {
				line = spaces(line, pad)
				pad = 0
			}
			line = append(line, cell...)
			line = spaces(line, pad+2)
		}
		line = append(bytes.TrimRight(line, " "), '\n')
		_, _ = w.Write(line) // a bufio.Writer keeps its error
	}
}

func spaces(b []byte, n int) []byte {
	for range n {
		b = append(b, ' ')
	}
	return b
}

// number returns a whole number in decimal. Tables have many of them.
func number[T ~int64 | ~uint32 | ~uint64](n T) string {
	if n < 0 {
		return strconv.FormatInt(int64(n), 10)
	}
	return strconv.FormatUint(uint64(n), 10)
}

// modeText returns a mode as ls shows it.
func modeText(mode uint16) string {
	out := []byte("-rwxrwxrwx")
	switch mode & pagecache.ModeType {
	case pagecache.ModeDir:
		out[0] = 'd'
	case pagecache.ModeLink:
		out[0] = 'l'
	}
	for i := range 9 {
		if mode>>(8-i)&1 == 0 {
			out[i+1] = '-'
		}
	}
	for _, special := range []struct {
		bit         uint16
		at          int
		both, alone byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if mode&special.bit == 0 {
			continue
		}
		if out[special.at] == 'x' {
			out[special.at] = special.both
		} else {
			out[special.at] = special.alone
		}
	}
	return string(out)
}
