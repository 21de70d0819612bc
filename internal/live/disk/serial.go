// Package disk identifies disks, and reads their partition tables, superblocks of md, and logical volumes of LVM.
package disk

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// vpdSerial is the page of a SCSI disk's vital product data that has its serial number
// (SPC-5, 7.7.16). The kernel makes one for SATA disks too (drivers/ata/libata-scsi.c).
const vpdSerial = 0x80

// Serial is the serial number of the disk whose directory in sysfs is dir: of virtio disks, of
// NVMe controllers, and of SCSI and SATA disks. It is empty if the disk has none.
func Serial(root fs.FS, dir string) string {
	for _, file := range []string{"serial", "device/serial"} {
		if b, err := fs.ReadFile(root, path.Join(dir, file)); err == nil {
			if s := strings.TrimSpace(string(b)); s != "" {
				return s
			}
		}
	}
	b, err := fs.ReadFile(root, path.Join(dir, "device/vpd_pg80"))
	if err != nil {
		return ""
	}
	return parseVPD(b)
}

// Hidden reports whether a disk is only a path to another disk, which has the same serial number. Such a
// disk has no device node (Documentation/ABI/stable/sysfs-block, hidden). dir is as for Serial.
func Hidden(root fs.FS, dir string) bool {
	b, err := fs.ReadFile(root, path.Join(dir, "hidden")) // the file does not exist before 4.15
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// PartitionDir is the directory in sysfs of a disk's partition with that number (Documentation/ABI/stable/sysfs-block,
// partition). Its base name is that of the device. dir is as for Serial.
func PartitionDir(root fs.FS, dir, number string) (string, error) {
	files, err := fs.Glob(root, path.Join(dir, "*/partition"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if b, err := fs.ReadFile(root, f); err == nil && strings.TrimSpace(string(b)) == number {
			return path.Dir(f), nil
		}
	}
	return "", fmt.Errorf("disk %s has no partition %s", path.Base(dir), number)
}

// parseVPD returns the serial number in its page. It is empty if b is not that page, or is cut short.
func parseVPD(b []byte) string {
	if len(b) < 4 || b[1] != vpdSerial {
		return ""
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n > len(b)-4 {
		return ""
	}
	s := strings.Trim(string(b[4:4+n]), " \x00")
	for _, c := range s {
		if c < ' ' || c > '~' {
			return ""
		}
	}
	return s
}
