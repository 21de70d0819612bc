package partition

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/live/disk"
)

// Backing is an image, or a part of it, as what an overlay lies on. QEMU leaves its lock alone: the caller must hold it.
type Backing struct {
	Image string
	At    []disk.Stretch // the part, in whole sectors; nil means all of Image
	// Extents is the path of a file that tells QEMU where the part is if that is more than one stretch. Prepare makes it.
	Extents string
}

// ImageLink is the suffix of the name of a symbolic link to the image, beside Extents: a name in that file must not be long,
// nor have a quotation mark in it.
const ImageLink = ".image"

// Prepare makes what QEMU needs to open the part, anew if it is there: the descriptor of a flat vmdk image, which puts
// stretches of other files together (QEMU, block/vmdk.c, vmdk_parse_extents).
func (b Backing) Prepare() error {
	if len(b.At) < 2 {
		return nil
	}
	name := b.Extents + ImageLink
	for _, f := range []string{b.Extents, name} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Symlink(b.Image, name); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n")
	for _, s := range b.At {
		fmt.Fprintf(&text, "RW %d FLAT \"%s\" %d\n", s.Len/sector, filepath.Base(name), s.Off/sector)
	}
	return os.WriteFile(b.Extents, []byte(text.String()), 0o600)
}

// sector is the unit of a vmdk descriptor, in bytes.
const sector = 512

// options are QEMU's options for the part.
func (b Backing) options() []string {
	if len(b.At) < 2 {
		options := []string{"driver=raw", "file.driver=" + fileDriver(b.Image), "file.filename=" + b.Image, "file.locking=off"}
		for _, s := range b.At {
			options = append(options, fmt.Sprintf("offset=%d", s.Off), fmt.Sprintf("size=%d", s.Len))
		}
		return options
	}
	options := []string{"driver=vmdk", "file.driver=file", "file.filename=" + b.Extents}
	for i := range b.At {
		options = append(options, fmt.Sprintf("extents.%d.locking=off", i))
	}
	return options
}
