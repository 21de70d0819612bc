package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"understudy.dev/understudy/internal/live/pair"
)

// manualCommand writes the manual pages and completions of a package. They are made from the
// help texts of the commands, so that the two never differ.
func manualCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "manual DIR",
		Short:  "Write the manual pages and the completions of shells into a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return writeManual(cmd.Root(), args[0]) },
	}
}

func writeManual(root *cobra.Command, dir string) error {
	for _, sub := range []string{"man8", "man5"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	put := func(name, text string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644) }
	var errs []error
	root.InitDefaultHelpFlag()
	for _, c := range commands(root) {
		errs = append(errs, put(filepath.Join("man8", pageName(c)+".8"), page(c)))
	}
	text, err := pairPage()
	errs = append(errs, err, put(filepath.Join("man5", "understudy-pair.5"), text),
		root.GenBashCompletionFileV2(filepath.Join(dir, "understudy.bash"), true), root.GenZshCompletionFile(filepath.Join(dir, "_understudy")),
		root.GenFishCompletionFile(filepath.Join(dir, "understudy.fish"), true))
	return errors.Join(errs...)
}

// commands returns a command and those below it, without hidden ones and cobra's own.
func commands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
			all = append(all, commands(sub)...)
		}
	}
	return all
}

// pageName returns the name of a command's page, as in understudy-salvage-list.
func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// roff escapes text for troff (groff(7)). A line that begins with a dot or a quote stays text.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", "\\`", "^", `\(ha`, "~", `\(ti`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// paragraphs writes the paragraphs of a command's long help. An indented paragraph is an example.
func paragraphs(b *strings.Builder, text string) {
	for p := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if strings.HasPrefix(p, "  ") {
			fmt.Fprintf(b, ".PP\n.EX\n%s\n.EE\n", roff(p))
			continue
		}
		fmt.Fprintf(b, ".PP\n%s\n", roff(strings.TrimSpace(p)))
	}
}

func title(b *strings.Builder, name, section, short string) {
	fmt.Fprintf(b, ".TH %s %s \"\" \"Understudy\" \"Understudy\"\n.nh\n.SH NAME\n%s \\- %s\n", strings.ToUpper(roff(name)), section, roff(name), roff(strings.ToLower(short[:1])+short[1:]))
}

// page returns the manual page of a command.
func page(c *cobra.Command) string {
	var b strings.Builder
	title(&b, pageName(c), "8", c.Short)
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n%s\n", roff(c.CommandPath()), roff(synopsis(c)))
	b.WriteString(".SH DESCRIPTION\n")
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	paragraphs(&b, text)
	if !c.HasParent() {
		paragraphs(&b, overview)
	}
	if subs := visible(c); len(subs) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range subs {
			fmt.Fprintf(&b, ".TP\n.BR %s (8)\n%s.\n", roff(pageName(sub)), roff(sub.Short))
		}
	}
	flags(&b, c)
	if !c.HasParent() {
		b.WriteString(rootSections)
	}
	var also []string
	if c.HasParent() {
		also = append(also, pageName(c.Parent())+" 8")
		for _, sub := range visible(c.Parent()) {
			if sub != c {
				also = append(also, pageName(sub)+" 8")
			}
		}
	}
	seeAlso(&b, append(also, "understudy-pair 5")...)
	return b.String()
}

func visible(c *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(c.Commands()), func(sub *cobra.Command) bool {
		return sub.Hidden || sub.Name() == "help" || sub.Name() == "completion"
	})
}

// synopsis returns what follows a command's name.
func synopsis(c *cobra.Command) string {
	_, args, _ := strings.Cut(c.Use, " ")
	if len(visible(c)) > 0 {
		args = "COMMAND"
	}
	if c.Flags().HasAvailableFlags() {
		args = "[OPTION]... " + args
	}
	return strings.TrimSpace(args)
}

func flags(b *strings.Builder, c *cobra.Command) {
	b.WriteString(".SH OPTIONS\n")
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			name += " " + strings.ToUpper(value)
		}
		fmt.Fprintf(b, ".TP\n.B %s\n%s", roff(name), roff(usage))
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "[]" && !strings.Contains(usage, "default") {
			fmt.Fprintf(b, " (default: %s)", roff(d))
		}
		b.WriteString(".\n")
	})
}

func seeAlso(b *strings.Builder, pages ...string) {
	b.WriteString(".SH SEE ALSO\n")
	slices.Sort(pages)
	for i, p := range slices.Compact(pages) {
		name, section, _ := strings.Cut(p, " ")
		end := ","
		if i == len(pages)-1 {
			end = ""
		}
		fmt.Fprintf(b, ".BR %s (%s)%s\n", roff(name), section, end)
	}
}

// overview is the additional text of understudy(8).
const overview = `Two Linux systems share one machine. One is active, one is its understudy, booted and idle. When the active kernel panics or hangs, the understudy takes its disks, its network address, and the file data that had not reached the disk, and serves on. The kernels are stock and unmodified.

A first pair, as root. A bridge is where others reach it; the one made here, until the next boot, only this machine reaches:

  ip link add br0 type bridge forward_delay 0
  ip address add 10.77.0.1/24 dev br0
  ip link set br0 up
  mkdir -p /srv/pairs/www && cd /srv/pairs
  echo 'a first page' > www/index.html
  truncate -s 1G web.img && mkfs.ext4 -q -d www web.img
  cp /boot/vmlinuz-$(uname -r) vmlinuz
  understudy initramfs -o guest.cpio --modules /lib/modules/$(uname -r)
  cp /usr/share/doc/understudy/examples/web.yaml /etc/understudy/web.yaml
  understudy check /etc/understudy/web.yaml
  systemctl enable --now understudy@web
  understudy status
  busybox wget -q -O - http://10.77.0.2/

Its kernel is made to panic, and the same page is there again once the understudy has taken over. Until the side that died has booted again, status says that the pair is unprotected, and ends with 4:

  understudy crash
  until busybox wget -q -O - http://10.77.0.2/; do sleep 1; done
  understudy events web
  understudy status`

// rootSections are sections that only understudy(8) has.
const rootSections = `.SH EXIT STATUS
.TP
.B 0
It was done; of
.BR understudy\-status (8):
the pair is protected.
.TP
.B 1
It was not done, and why is said on the standard error.
.TP
.B 3
It was done in part: something that is in memory was refused, and is named.
.TP
.B 4
Of
.BR understudy\-status (8):
it serves, and is unprotected, in transition or in trouble.
.TP
.B 5
Of
.BR understudy\-status (8):
nobody serves.
.SH FILES
.TP
.I /etc/understudy/NAME.yaml
A pair that
.B understudy@NAME.service
runs:
.BR understudy\-pair (5).
.TP
.I /var/lib/understudy/NAME/events.jsonl
What has happened to it:
.BR understudy\-events (8).
.TP
.I /dev/shm/understudy\-NAME
The run directory of a pair that is up: memory, consoles, the record of a takeover. Nothing in it is removed that may be nowhere else.
.TP
.I /usr/share/understudy
A JSON Schema of the description of a pair, rules for Prometheus's alerts, a board for Grafana.
.SH ENVIRONMENT
.TP
.B UNDERSTUDY_RUN
Where run directories are, a tmpfs; default: /dev/shm.
.TP
.B UNDERSTUDY_STATE
Where logs of events are; default: /var/lib/understudy.
.TP
.B UNDERSTUDY_CACHE
Where that is kept which can be made again; default: ~/.cache/understudy.
`

// pairPage returns understudy-pair(5), made from the schema.
func pairPage() (string, error) {
	var s schema
	if err := json.Unmarshal(pair.Schema, &s); err != nil {
		return "", err
	}
	var b strings.Builder
	title(&b, "understudy-pair", "5", "description of a pair of partitions")
	b.WriteString(".SH DESCRIPTION\n")
	paragraphs(&b, "A YAML file that describes two partitions of one machine, and what follows the active one. Relative paths are taken from the directory of the file. Keys that are not here are refused; understudy check says what is wrong, with its line and what to do.")
	b.WriteString(".SH KEYS\n")
	s.keys(&b, s.Defs, "")
	b.WriteString(".SH EXAMPLE\n.EX\n" + roff(examplePair) + ".EE\n")
	seeAlso(&b, "understudy 8", "understudy-check 8", "understudy-up 8")
	return b.String(), nil
}

// schema has those parts of a JSON Schema that the page needs.
type schema struct {
	Ref                  string `json:"$ref"`
	Description          string
	Properties           map[string]*schema
	AdditionalProperties json.RawMessage
	Items                *schema
	Required             []string
	Enum                 []any
	Default              any
	Examples             []any
	Defs                 map[string]*schema `json:"$defs"`
}

// keys describes the keys of an object, and what is below them.
func (s *schema) keys(b *strings.Builder, defs map[string]*schema, path string) {
	for _, name := range s.order() {
		p := s.Properties[name]
		at := path + name
		below := p.target(defs)
		words := []string{strings.TrimSuffix(p.Description, ".")}
		if p.Description == "" && below.Description != "" {
			words[0] = strings.TrimSuffix(below.Description, ".")
		}
		if len(p.Enum) > 0 {
			words = append(words, "One of "+list(p.Enum))
		}
		if p.Default != nil {
			words = append(words, fmt.Sprintf("Default: %v", p.Default))
		}
		if len(p.Examples) > 0 {
			e, _ := json.Marshal(p.Examples[0]) // it was unmarshalled
			words = append(words, "For example "+string(e))
		}
		if slices.Contains(s.Required, name) {
			words = append(words, "Must be there")
		}
		words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
		fmt.Fprintf(b, ".TP\n.B %s\n%s.\n", roff(at), roff(strings.Join(words, ". ")))
		var each schema
		switch {
		case below.Items != nil && len(below.Items.target(defs).Properties) > 0:
			below.Items.target(defs).keys(b, defs, at+"[].")
		case len(below.Properties) > 0:
			below.keys(b, defs, at+".")
		case json.Unmarshal(below.AdditionalProperties, &each) == nil && each.Ref != "":
			each.target(defs).keys(b, defs, at+".NAME.")
		}
	}
}

// order returns the keys, the required ones first.
func (s *schema) order() []string {
	var names []string
	for name := range s.Properties {
		if !slices.Contains(s.Required, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return append(slices.Clone(s.Required), names...)
}

// target returns the schema that s refers to, or s itself.
func (s *schema) target(defs map[string]*schema) *schema {
	if d := defs[strings.TrimPrefix(s.Ref, "#/$defs/")]; d != nil {
		return d
	}
	return s
}

func list(values []any) string {
	var words []string
	for _, v := range values {
		words = append(words, fmt.Sprint(v))
	}
	return strings.Join(words, ", ")
}
