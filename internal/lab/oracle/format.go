package oracle

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"

	"understudy.dev/understudy/dead/ext4"
)

// format makes the file system of a case.
func (c Case) format(path string, more ...string) error {
	if err := makeFile(path, diskSize); err != nil {
		return err
	}
	var args []string
	switch c.Config.Type {
	case "xfs":
		args = []string{"-q", "-m", "uuid=" + uuid(c.Seed)}
	case "btrfs":
		args = []string{"-q", "-U", uuid(c.Seed)}
	default:
		args = []string{"-qF", "-I", "256", "-U", uuid(c.Seed), "-E", "hash_seed=" + uuid(c.Seed+1) + c.Config.Extended}
	}
	args = append(args, c.Config.Mkfs[1:]...)
	args = append(append(args, more...), path)
	if c.Config.Size != "" {
		args = append(args, c.Config.Size)
	}
	if err := execute("", append(c.Config.Mkfs[:1:1], args...)...); err != nil {
		return err
	}
	for _, command := range c.Config.Tune {
		if err := tune(append(command[:len(command):len(command)], path)); err != nil {
			return err
		}
	}
	if c.Config.Ballast {
		if err := c.ballast(path); err != nil {
			return err
		}
	}
	if c.Config.Outside {
		return c.outside(path, journalOf(path))
	}
	return nil
}

// makeFile makes a file of size bytes, all of it a hole.
func makeFile(path string, size int64) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

// tune runs a command on a file system. It is no failure if e2fsck(8) has corrected something.
func tune(argv []string) error {
	err := execute("", argv...)
	if exit, ended := errors.AsType[*exec.ExitError](err); ended && argv[0] == "e2fsck" && exit.ExitCode() == 1 {
		return nil
	}
	return err
}

// What stays free in a file system that is nearly full: this many pieces, of up to this many blocks each.
const (
	ballastPieces = 500
	ballastPiece  = 24
)

// ballastName is the file that takes the rest.
const ballastName = "ballast"

// ballast makes a file take all that is free, except for pieces here and there.
func (c Case) ballast(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fs, err := ext4.Open(f)
	if err != nil {
		return err
	}
	free := uint64(0)
	for n := range uint32(fs.Super.Groups()) {
		g, err := fs.Group(n)
		if err != nil {
			return err
		}
		free += uint64(g.FreeClusters)
	}
	free -= ballastPieces // for the metadata that maps the file
	var script strings.Builder
	fmt.Fprintf(&script, "write /dev/null %[1]s\nfallocate %[1]s 0 %[2]d\n", ballastName, free-1)
	r := rand.New(rand.NewPCG(c.Seed, 5))
	for n := range uint64(ballastPieces) {
		at := n * (free / ballastPieces)
		fmt.Fprintf(&script, "punch %s %d %d\n", ballastName, at, at+r.Uint64N(ballastPiece))
	}
	cmd := exec.Command("debugfs", "-w", "-f", "-", path)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("debugfs: %w: %s", err, out)
	}
	return nil
}

// journalOf returns the path of the journal of a disk whose journal is on another one.
func journalOf(path string) string { return path + ".journal" }

const journalSize = 32 << 20 // bytes, of a journal on a separate disk

// outside gives a file system a journal on another disk. mke2fs(8) itself would want a block device.
func (c Case) outside(path, journal string) error {
	if err := makeFile(journal, journalSize); err != nil {
		return err
	}
	if err := execute("", "mke2fs", "-qF", "-O", "journal_dev", "-b", "4096", "-U", uuid(c.Seed+2), journal); err != nil {
		return err
	}
	// s_nr_users and s_users of the journal's superblock (include/linux/jbd2.h, struct journal_superblock_s), in block 1.
	f, err := os.OpenFile(journal, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	user, err := hex.DecodeString(strings.ReplaceAll(uuid(c.Seed), "-", ""))
	if err == nil {
		_, err = f.WriteAt([]byte{0, 0, 0, 1}, 4096+0x40)
	}
	if err == nil {
		_, err = f.WriteAt(user, 4096+0x100)
	}
	if err != nil {
		return err
	}
	for _, command := range []string{"feature has_journal", "set_super_value journal_uuid " + uuid(c.Seed+2)} {
		if err := execute("", append(debugfs(command), path)...); err != nil {
			return err
		}
	}
	return nil
}
