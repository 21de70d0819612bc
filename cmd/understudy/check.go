package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

func checkCommand() *cobra.Command {
	var textOnly, schema bool
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say what is wrong with the description of a pair",
		Long: `Say what is wrong with the description of a pair (default: pair.yaml).

Everything that up would refuse is looked at, and nothing is changed: the text, this
machine's processors, memory, bridges and QEMU, the kernels, and the room in /dev/shm and the file
systems on the disks, unless the pair is up. With --text only the text, for a pair of another machine.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			if schema {
				_, err := out.Write(pair.Schema)
				return err
			}
			file := first(args)
			if file == "" {
				file = "pair.yaml"
			}
			return check(out, file, textOnly)
		},
	}
	cmd.Flags().BoolVar(&textOnly, "text", false, "look at the text alone, and not at this machine")
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of the file instead, for editors")
	return cmd
}

// check checks that a pair would come up, as far as that can be known beforehand.
func check(out io.Writer, file string, textOnly bool) error {
	p, err := pair.Load(file)
	if err != nil {
		return err
	}
	if textOnly {
		_, err := fmt.Fprintf(out, "%s: the text is good\n", file)
		return err
	}
	d, err := supervisor.OpenRunDir(dirs.Run(p.Name))
	up := errors.Is(err, supervisor.ErrRunning) || err == nil && d.HasGuests()
	switch {
	case err == nil:
		if !up && d.AtStake() {
			err = &supervisor.Unsaved{Dir: d.Path, Record: d.Record}
		}
		err = errors.Join(err, d.Close())
	case up || errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	m, merr := pair.ThisMachine()
	if merr != nil {
		return errors.Join(err, merr)
	}
	if up { // it has its memory already
		m.MemAvailable += p.Partitions[0].Memory + p.Partitions[1].Memory
	}
	if err := errors.Join(err, p.Check(m), checkBridges(p), partition.Installed()); err != nil {
		return err
	}
	if up {
		_, err := fmt.Fprintf(out, "%s: good; the pair is up, so that its disks were not looked at\n", file)
		return err
	}
	if err := supervisor.Inspect(p, dirs.Run(p.Name), out); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: good\n", file)
	return err
}
