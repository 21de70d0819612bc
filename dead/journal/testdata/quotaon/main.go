// Quotaon turns quotas of users on, of a device, from a file on it (quotactl(2), Q_QUOTAON).
package main

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	const on, users, vfsv1 = 0x800002, 0, 4 // Q_QUOTAON, USRQUOTA, QFMT_VFS_V1
	device, err := unix.BytePtrFromString(os.Args[1])
	if err == nil {
		var file *byte
		if file, err = unix.BytePtrFromString(os.Args[2]); err == nil {
			_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL, on<<8|users, uintptr(unsafe.Pointer(device)), vfsv1, uintptr(unsafe.Pointer(file)), 0, 0)
			if errno != 0 {
				err = errno
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quotaon:", err)
		os.Exit(1)
	}
}
