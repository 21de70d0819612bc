package oracle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// check runs the check of a case's type of file system on an unmounted one, which it does not change, and returns
// what that finds; "" is good.
func (c Case) check(image string) (string, error) {
	var argv []string
	switch c.Config.Type {
	case "xfs":
		argv = []string{"xfs_repair", "-n", image}
	case "btrfs":
		argv = []string{"btrfs", "check", "--readonly", image}
	default:
		return checkExt(image)
	}
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); ended {
		return string(out), nil
	}
	return "", err
}

func checkExt(image string) (string, error) {
	out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput()
	if exit, ended := errors.AsType[*exec.ExitError](err); ended && exit.ExitCode() < 8 {
		return string(out), nil
	}
	if err != nil {
		return "", fmt.Errorf("e2fsck: %w: %s", err, out)
	}
	n, err := errorCount(image)
	if err == nil && n > 0 {
		return fmt.Sprintf("the kernel has counted %d errors in it", n), nil
	}
	return "", err
}

// errorCount returns how many errors kernels have found in a file system: s_error_count
// (struct ext4_super_block, fs/ext4/ext4.h; the superblock is at 1024).
func errorCount(image string) (uint32, error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [4]byte
	if _, err := f.ReadAt(b[:], 1024+0x194); err != nil {
		return 0, fmt.Errorf("read superblock: %w", err)
	}
	return binary.LittleEndian.Uint32(b[:]), nil
}

// repairs is how often e2fsck is run at most. It aborts, with the file system modified,
// where a repair exposes an inode whose checksum does not match (check_filetype in its
// pass2.c), and it may leave something for the next run.
const repairs = 5

// repair lets e2fsck correct all that it can.
func repair(image string) error {
	for n := 1; ; n++ {
		out, err := exec.Command("e2fsck", "-fy", image).CombinedOutput()
		exit, ended := errors.AsType[*exec.ExitError](err)
		// e2fsck(8): 1 and 2 are errors that were corrected, 4 that some were not, 8 that it could not go on.
		switch {
		case err == nil || ended && exit.ExitCode()&^3 == 0 || ended && exit.ExitCode()&^7 == 0 && n == repairs:
			return nil
		case !ended || exit.ExitCode() != 8|1 && exit.ExitCode()&^7 != 0 || n == repairs:
			return fmt.Errorf("e2fsck -fy: %w: %s", err, out)
		}
	}
}
