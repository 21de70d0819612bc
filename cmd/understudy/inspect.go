package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/sockets"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// inspection is the output of inspect. Its file systems do not list their files.
type inspection struct {
	Kernel      kernelInfo              `json:"kernel"`
	FileSystems []fileSystemInfo        `json:"filesystems"`
	Pseudo      []string                `json:"pseudo"` // types of file systems without files to save
	TCP         tcpInfo                 `json:"tcp"`
	NotDead     bool                    `json:"not_dead,omitempty"` // the kernel was not in panic
	Live        bool                    `json:"live,omitempty"`     // it is the memory of a machine that still runs
	Stages      []inventory.StageReport `json:"stages"`
}

type kernelInfo struct {
	inventory.Facts
	Uptime float64 `json:"uptime_seconds,omitempty"`
}

// tcpInfo counts connections; sockets lists them.
type tcpInfo struct {
	Established int    `json:"established"`
	Refused     int    `json:"refused"`           // entries of the kernel's tables, or whole tables
	Without     string `json:"without,omitempty"` // what the kernel was built without, so that there are no connections
}

type fileSystemInfo struct {
	Type      string   `json:"type"`
	Device    string   `json:"device"`
	UUID      string   `json:"uuid"`
	ReadOnly  bool     `json:"read_only"`
	MountedOn []string `json:"mounted_on,omitempty"`
	Elsewhere int      `json:"mounted_elsewhere,omitempty"` // mounts in other namespaces
	Files     int      `json:"unsaved_files"`
	Bytes     int64    `json:"unsaved_bytes"`
	Deleted   int      `json:"deleted_but_open"`
	Oldest    *float64 `json:"oldest_seconds,omitempty"`
	Refused   int      `json:"refused"` // refusals
	Problem   string   `json:"problem,omitempty"`
	// NotRead says that the type is not understood: Files and Bytes are for pages that wait
	// to be written, and none of the files can be listed.
	NotRead bool `json:"not_read,omitempty"`
}

func inspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect IMAGE...",
		Short: "Say which kernel died in this memory, why, and how much it had not saved",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := inventory.OpenFiles(args, morgue.Builds()...)
			if err != nil {
				return err
			}
			defer m.Close()
			c, in, err := inspect(m)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), in)
			} else {
				err = in.write(cmd.OutOrStdout())
			}
			return errors.Join(err, c.verdict())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print for programs")
	return cmd
}

func inspect(m *inventory.Image) (*chosen, *inspection, error) {
	in := &inspection{FileSystems: []fileSystemInfo{}, NotDead: m.NotDead(), Live: m.Info().Live}
	if err := m.Stage("read facts", func() error { in.Kernel.Facts = m.Facts(); return nil }); err != nil {
		return nil, nil, err
	}
	if m.Clock != nil {
		in.Kernel.Uptime = m.Clock.Uptime().Seconds()
	}
	all, pseudo, err := m.FileSystems()
	c := &chosen{image: m, report: inventory.NewReport(m), faults: err}
	in.Pseudo = pseudo
	for _, f := range all {
		_ = m.Stage("walk "+f.Device, func() error {
			l := located{f, f.Find(inventory.Query{})}
			c.found = append(c.found, l)
			in.FileSystems = append(in.FileSystems, l.info())
			return nil
		})
	}
	_ = m.Stage("walk connections", func() error {
		in.TCP.Without = sockets.Without(m.Kernel)
		for c, err := range sockets.Connections(m.Kernel) {
			switch {
			case err != nil:
				in.TCP.Refused++
			case c.State == sockets.Established:
				in.TCP.Established++
			}
		}
		return nil
	})
	c.report.Time(m)
	in.Stages = c.report.Stages
	return c, in, nil
}

func (l *located) info() fileSystemInfo {
	s := l.Super
	out := fileSystemInfo{Type: s.Type, Device: l.Device, ReadOnly: s.ReadOnly()}
	out.MountedOn, out.Elsewhere = l.MountedOn()
	if s.UUID != [16]byte{} {
		out.UUID = s.UUID.String()
	}
	out.Files, out.Bytes, out.NotRead = l.Unread()
	oldest := time.Duration(-1)
	for _, f := range l.Files {
		out.Files++
		out.Bytes += f.UnsavedBytes()
		oldest = max(oldest, f.Age)
		if f.State == inventory.Deleted {
			out.Deleted++
		}
		out.Refused += len(f.Refused)
	}
	out.Refused += len(l.Refused)
	if oldest >= 0 {
		seconds := oldest.Seconds()
		out.Oldest = &seconds
	}
	if err := errors.Join(l.Faults...); err != nil {
		out.Problem = err.Error()
	}
	return out
}

func (in *inspection) write(w io.Writer) error {
	out := bufio.NewWriter(w)
	k := &in.Kernel
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, "%-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("kernel", "%s", inventory.Printable(k.Release))
	if k.Host != "" {
		line("host", "%s", inventory.Printable(k.Host))
	}
	if !k.Boot.IsZero() {
		line("booted", "%s, up %v until %s", k.Boot.UTC().Format(time.DateTime+" MST"), (time.Duration(k.Uptime * float64(time.Second))).Round(100*time.Millisecond),
			k.Now.UTC().Format(time.TimeOnly))
	}
	switch {
	case k.Panic != "" && k.PanicCPU != nil:
		line("panic", "%s (CPU %d)", inventory.Printable(k.Panic), *k.PanicCPU)
	case k.Panic != "":
		line("panic", "%s", inventory.Printable(k.Panic))
	case k.PanicProblem != "":
		line("panic", "not known: %s", k.PanicProblem)
	default:
		line("panic", "none in its log")
	}
	switch {
	case in.Live:
		line("alive", "this machine goes on: what is said of it was so at some moment of the look")
	case in.NotDead:
		line("alive", "%s", notInPanic)
	}
	line("kaslr", "moved by %#x", k.KASLR)
	if k.Architecture != "x86_64" {
		line("machine", "%s, pages of %d KiB", k.Architecture, k.PageSize>>10)
	}
	line("paging", "%d levels", k.PagingLevels)
	line("memory", "%s, %s", bytesText(int64(k.Memory)), k.Format)
	if k.CommandLine != "" {
		line("command", "%s", inventory.Printable(k.CommandLine))
	}
	if t := in.TCP; t.Without != "" {
		line("tcp", "none: this kernel was built without %s", t.Without)
	} else if t.Established > 0 || t.Refused > 0 {
		line("tcp", "%s established, %s", plural(t.Established, "connection"), plural(t.Refused, "refusal"))
	}
	fmt.Fprintln(out)
	rows := [][]string{{"FS", "TYPE", "MOUNTED ON", "UNSAVED FILES", "UNSAVED BYTES", "OLDEST", "REFUSED", "UUID"}}
	for _, f := range in.FileSystems {
		oldest := time.Duration(-1)
		if f.Oldest != nil {
			oldest = time.Duration(*f.Oldest * float64(time.Second))
		}
		var on []string
		for _, at := range f.MountedOn {
			on = append(on, inventory.Printable(at))
		}
		if f.Elsewhere > 0 {
			on = append(on, fmt.Sprintf("(+%d in other namespaces)", f.Elsewhere))
		}
		row := []string{inventory.Printable(f.Device), inventory.Printable(f.Type), strings.Join(on, " "), fmt.Sprint(f.Files), fmt.Sprint(f.Bytes), ageText(oldest), fmt.Sprint(f.Refused), f.UUID}
		if f.NotRead { // not even zero is known to be right
			row[4], row[5], row[6] = "up to "+row[4], "?", "all"
		}
		rows = append(rows, row)
	}
	columns(out, rows, "lllrrrrl")
	fmt.Fprintf(out, "without files to save: %s\n", strings.Join(in.Pseudo, ", "))
	return out.Flush()
}
