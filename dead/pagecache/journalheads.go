package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// JournalHeads visits the journal head (struct journal_head) of every buffer of the file system that belongs to a journal: those
// of metadata, in pages of the device, and those of content that is journaled, in pages of files.
func (d *Device) JournalHeads(visit func(head addr.Virt, block addr.Block)) error {
	device, err := d.inode()
	if err == nil {
		err = d.headsOf(device, visit)
	}
	if err != nil {
		return fmt.Errorf("find journal heads of %s: %w", d.super.ID, err)
	}
	data := d.c.options(d.super) & optionData
	all := data == optionJournalData || data == 0 // 0: the kernel does not tell
	for i, err := range d.c.Inodes(d.super) {
		if err == nil && (all || d.c.ext4Flags(i)&flagJournalData != 0) {
			err = d.headsOf(i, visit)
		}
		if err != nil {
			return fmt.Errorf("find journal heads of %s: %w", d.super.ID, err)
		}
	}
	return nil
}

// headsOf is JournalHeads for the pages of one mapping.
func (d *Device) headsOf(i *Inode, visit func(head addr.Virt, block addr.Block)) error {
	c, l := d.c, &d.c.layout.buffer
	if !l.owner.Present() {
		return errors.New("the kernel does not tell where a buffer's b_private is")
	}
	var bad error
	c.cached(i, 1<<50, func(at slotted, err error) bool {
		if err == nil && at.isValue() {
			return true // the shadow of a page that was evicted
		}
		var p *pageState
		if err == nil {
			p, err = c.sound(i, at)
		}
		if err == nil && at.index == p.index && p.has(c.layout.page.hasPrivate) {
			err = c.ring(p, func(b bufferState) {
				if b.has(l.private) {
					visit(b.owner, b.block)
				}
			})
		}
		bad = err
		return err == nil
	})
	return bad
}
