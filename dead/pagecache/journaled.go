package pagecache

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// Journaled returns the device blocks of those buffers of a file that belong to a journal (BH_JBD): their content may be in
// the journal only, or on its way there. It fails with ErrUnsettled if pages were being removed from the file, which happens
// before its blocks are freed (ext4_truncate, ext4_punch_hole).
func (d *Device) Journaled(i *Inode) ([]addr.Block, error) {
	c := d.c
	free, bad := d.keepsPages(i)
	if bad == nil && !free {
		bad = fmt.Errorf("%w: its pages were being removed (truncate or hole punch)", ErrUnsettled)
	}
	if bad != nil {
		return nil, fmt.Errorf("find what a journal has of inode %d: %w", i.Ino, bad)
	}
	var out []addr.Block
	c.cached(i, i.unit.End(i.Size), func(at slotted, err error) bool {
		if err == nil && at.isValue() {
			return true
		}
		var p *pageState
		if err == nil {
			p, err = c.sound(i, at)
		}
		if err == nil && p.has(c.layout.page.hasPrivate) {
			err = c.ring(p, func(b bufferState) {
				if b.has(c.layout.buffer.private) {
					out = append(out, b.block)
				}
			})
		}
		bad = err
		return err == nil
	})
	if bad != nil {
		return nil, fmt.Errorf("find what a journal has of inode %d: %w", i.Ino, bad)
	}
	return out, nil
}

// keepsPages reports whether nobody held the lock under which pages are removed from a file: i_mmap_sem of ext4, and
// invalidate_lock of all file systems since 5.15 (commit d4f5258eae7b).
func (d *Device) keepsPages(i *Inode) (bool, error) {
	if lock := d.c.k.Types().Layout("address_space").Lock("invalidate_lock"); lock.Known() {
		return d.c.k.Free(lock, i.mapping)
	}
	l := layoutIn(d.c.k, "ext4_inode_info", "ext4")
	return d.c.k.Free(l.Lock("i_mmap_sem"), i.Addr-addr.Virt(l.Field("vfs_inode").Off))
}
