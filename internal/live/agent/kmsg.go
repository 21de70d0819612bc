package agent

import (
	"bytes"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSaid bounds the kernel's messages that are kept, in bytes, and maxRecords the records that are read.
const (
	maxSaid    = 1 << 10
	maxRecords = 1 << 10
)

// kernelLog reads what the kernel logs from now on (Documentation/ABI/testing/dev-kmsg): each read
// gives the next record, or EAGAIN. It is a file descriptor, and not an os.File, whose Fd method would
// make reads block. A negative one means that there is no log.
type kernelLog int

// listen opens the kernel's log at its end. If it cannot, the kernelLog is negative and has no records.
func listen() kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		unix.Close(fd)
		return -1
	}
	return kernelLog(fd)
}

// said returns the records with a word in them that the kernel has logged since, as one line, and closes
// the log.
func (l kernelLog) said(word string) string {
	if l < 0 {
		return ""
	}
	defer unix.Close(int(l))
	var all []string
	b, size := make([]byte, 8<<10), 0 // the longest record: CONSOLE_EXT_LOG_MAX
	for range maxRecords {
		n, err := unix.Read(int(l), b)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) { // EPIPE: records were overwritten; read the next
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		if text := kernelText(b[:n]); strings.Contains(text, word) && size < maxSaid {
			all, size = append(all, text), size+len(text)
		}
	}
	return strings.Join(all, "; ")
}

// kernelText is the text of a record: the part between its numbers and its further lines.
func kernelText(record []byte) string {
	_, text, _ := bytes.Cut(record, []byte(";"))
	text, _, _ = bytes.Cut(text, []byte("\n"))
	return strings.ToValidUTF8(string(text), "?")
}
