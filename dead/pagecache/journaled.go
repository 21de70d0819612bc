package pagecache

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// Journaled returns the blocks of the device that a file's buffers stand for which belong to a journal (BH_JBD): their content may be in
// the journal only, or on its way there.
func (d *Device) Journaled(i *Inode) ([]addr.Block, error) {
	c := d.c
	var out []addr.Block
	var bad error
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
