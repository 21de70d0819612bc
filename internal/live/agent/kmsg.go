package agent

import (
	"bytes"
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSaid bounds what is kept of what the kernel says, in bytes, and maxRecords what is read of it.
const (
	maxSaid    = 1 << 10
	maxRecords = 1 << 10
)

// kernelLog is what the kernel will say (Documentation/ABI/testing/dev-kmsg): each read gives one
// record, from where it was sought to, or EAGAIN. It is a file descriptor, and not an os.File, whose
// Fd would let reads wait; negative: there is none.
type kernelLog int

// listen begins to listen. Without the kernel's log nothing is heard.
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

// said gives what the kernel said since that has a word in it, as one line, and ends the listening.
func (l kernelLog) said(word string) string {
	if l < 0 {
		return ""
	}
	defer unix.Close(int(l))
	var all []string
	b, size := make([]byte, 8<<10), 0 // of a record at most: CONSOLE_EXT_LOG_MAX
	for range maxRecords {
		n, err := unix.Read(int(l), b)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) { // records are gone, the next is there
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

// kernelText is the text of a record: what is between its numbers and its further lines.
func kernelText(record []byte) string {
	_, text, _ := bytes.Cut(record, []byte(";"))
	text, _, _ = bytes.Cut(text, []byte("\n"))
	return strings.ToValidUTF8(string(text), "?")
}
