package pair

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// errNoImage is the error of imageFormat for a file that cannot be a disk at all.
var errNoImage = errors.New("neither a regular file nor a block device, or empty")

const formatLUKS = "LUKS"

// magics are how disk image formats that are not raw begin (QEMU's block/*.c,
// the probe function of each format; cryptsetup's on-disk format for LUKS).
// A fixed VHD has its mark at the end and looks raw, which it is apart from that.
var magics = []struct {
	format string
	offset int
	magic  string
}{
	{"qcow2", 0, "QFI\xfb"},
	{"qed", 0, "QED\x00"},
	{"vmdk", 0, "KDMV"},
	{"vmdk", 0, "COWD"},
	{"vmdk", 0, "# Disk DescriptorFile"},
	{"vdi", 64, "\x7f\x10\xda\xbe"},
	{"vhdx", 0, "vhdxfile"},
	{"vhd", 0, "conectix"},
	{"parallels", 0, "WithoutFreeSpace"},
	{"parallels", 0, "WithouFreSpacExt"},
	{"bochs", 0, "Bochs Virtual HD Image"},
	{formatLUKS, 0, "LUKS\xba\xbe"},
}

// imageFormat returns the name of the format that a disk image is in, or ""
// if nothing says that it is not raw. It only reads.
func imageFormat(path string) (string, error) {
	st, err := os.Stat(path) // first: to open a FIFO or a tape has effects
	if err != nil {
		return "", err
	}
	block := st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0
	if !block && (!st.Mode().IsRegular() || st.Size() == 0) {
		return "", fmt.Errorf("%s is %w", path, errNoImage)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read image: %w", err)
	}
	return formatOf(head[:n]), nil
}

// formatOf judges the first bytes of an image.
func formatOf(head []byte) string {
	for _, m := range magics {
		if len(head) > m.offset && bytes.HasPrefix(head[m.offset:], []byte(m.magic)) {
			return m.format
		}
	}
	return ""
}
