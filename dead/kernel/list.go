package kernel

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// List calls visit with the address of the struct list_head (include/linux/types.h) of each member of a list, in order,
// until visit returns an error, which List returns. Each member must point back to the one before it, which rules out all
// cycles. It is an error if one does not, or if there are more than most members.
func (k *Kernel) List(head addr.Virt, most int, visit func(at addr.Virt) error) error {
	before := head
	at, err := k.Pointer(head)
	for n := 0; err == nil && at != head; n++ {
		if n == most {
			return fmt.Errorf("list at %v is too long", head)
		}
		var back addr.Virt
		if back, err = k.Pointer(at + 8); err != nil {
			break
		}
		if back != before {
			return fmt.Errorf("list at %v: %v points back to %v, not %v", head, at, back, before)
		}
		if err = visit(at); err != nil {
			break
		}
		before = at
		at, err = k.Pointer(at)
	}
	return err
}
