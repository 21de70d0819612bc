package extract

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncAll makes everything below a directory durable. One syncfs is much cheaper
// than an fsync for each file, and reports write errors since Linux 5.8.
func syncAll(root *os.Root) error {
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))), f.Close())
}
