//go:build !amd64

package agent

import "golang.org/x/sys/unix"

// cloneCounting is implemented for x86-64 only.
func cloneCounting(*counting) int { return -int(unix.ENOSYS) }
