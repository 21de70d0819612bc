package journal

import (
	"fmt"
	"maps"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/jbd2"
)

// audit proves the transaction, or prepares it for a check if it cannot be proven: operations
// in flight may be half in it.
func (f *finisher) audit(t *jbd2.Transaction) error {
	if f.proven {
		return nil
	}
	f.report.Check = fmt.Sprintf("%d operations were in flight", f.report.Open)
	if t == nil {
		if f.report.Case != Finished {
			return nil
		}
		return f.step("audit", f.midUpdateAgain)
	}
	var c *change
	err := f.step("audit", func() (err error) {
		if c, err = f.change(t); err == nil {
			err = f.prove(c)
		}
		return err
	})
	if err == nil && f.report.Check != "" {
		err = f.step("prepare", func() error { return f.prepare(c) })
	}
	if err == nil {
		err = f.step("fill", func() error { return f.fill(c) })
	}
	t.Mark = f.mark(f.report.Check == "" && len(f.report.AfterMount) == 0)
	return err
}

// consistent refuses a transaction that contradicts itself although no operation was in flight:
// what memory has of it is damaged. A check would make it consistent, at the cost of files that
// are whole on the disk.
func (f *finisher) consistent(t *jbd2.Transaction) error {
	c, err := f.change(t)
	if err != nil {
		return err
	}
	if err := c.plausible(f.exceptPlaced(), 0); err != nil || f.sound {
		return err
	}
	verdict, err := f.remembered.Check(c.before, c.blocks)
	if err == nil && !verdict.Clean && !verdict.Foreign {
		err = fmt.Errorf("%w: no operation was in flight, but %s", ErrDamaged, strings.Join(verdict.Reasons, "; "))
	}
	return err
}

// exceptPlaced returns what memory has, except for the inodes of placed files: their content in the transaction is ours.
func (f *finisher) exceptPlaced() audit.Memory {
	ours := make(map[addr.Ino]struct{}, len(f.placed.files))
	for _, n := range f.placed.files {
		ours[n] = struct{}{}
	}
	m, inode := f.remembered, f.remembered.Inode
	if inode == nil {
		return m
	}
	m.Inode = func(n addr.Ino) (root []byte, size int64, known bool) {
		if _, there := ours[n]; there {
			return nil, 0, false
		}
		return inode(n)
	}
	return m
}

// prove says in the report whether a change leaves the file system whole. A change that makes the file system larger, with
// operations in flight, is refused: a check of a half-done change of that kind may lose what is whole.
func (f *finisher) prove(c *change) error {
	if c.grows() {
		return errGrows
	}
	if err := c.plausible(f.remembered, f.report.Open); err != nil {
		return err
	}
	if hasInlineData(c.fs) {
		if err := f.checkInline(c); err != nil {
			return err
		}
	}
	verdict, err := f.remembered.Check(c.before, c.blocks)
	if err != nil {
		return err
	}
	f.report.Audit = &verdict
	switch {
	case verdict.Clean:
		f.report.Check = ""
		return nil
	case verdict.Damaged != "" && !verdict.Foreign:
		return fmt.Errorf("%w: %s", ErrDamaged, verdict.Damaged)
	}
	if f.torn, err = audit.Torn(c.before, c.blocks); err != nil {
		return err
	}
	mended, err := f.mended(c)
	if err != nil {
		f.report.Check += fmt.Sprintf(": %s; not completed: %v", strings.Join(verdict.Reasons, "; "), err)
		return nil
	}
	if err := c.replaceAll(mended.Blocks); err != nil {
		return err
	}
	f.report.Check, f.report.Mended, f.released = "", mended.What, mended.Released
	f.report.Gone = mended.Gone
	// A sound file system is not enough: a piece of a file may be missing from it.
	return f.midUpdate(c.tree, true)
}

// mended completes what is half done in a change, if that makes the change sound.
func (f *finisher) mended(c *change) (*audit.Mended, error) {
	mended, err := f.remembered.Mend(c.before, c.blocks, f.report.Open)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(c.blocks)
	maps.Copy(all, mended.Blocks)
	verdict, err := f.remembered.Check(c.before, all)
	if err == nil && !verdict.Clean {
		err = fmt.Errorf("still inconsistent when completed: %s", strings.Join(verdict.Reasons, "; "))
	}
	if err == nil {
		f.report.Audit = &verdict
	}
	return mended, err
}

// prepare changes the transaction so that e2fsck repairs what is half done in it, without doing
// harm.
func (f *finisher) prepare(c *change) error {
	if err := c.seal(); err != nil {
		return err
	}
	if err := f.midUpdate(c.tree, true); err != nil {
		return err
	}
	if err := f.keepOrphans(c); err != nil {
		return err
	}
	return c.markUnclean()
}
