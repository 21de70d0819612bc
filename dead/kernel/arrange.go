package kernel

import (
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/ram"
)

// arranged finds the kernel in a file that does not say where its bytes lie in physical
// memory. What the firmware told the kernel does. Machines other than PCs are considered only
// if there is the note of a kernel for another architecture.
func (f *finder) arranged(mem ram.Unarranged) (*Kernel, error) {
	var errs []error
	guesses := mem.Guesses(ram.PC)
	for n := 0; n < len(guesses); n++ {
		guess := guesses[n]
		if f.mem = mem; n > 0 {
			f.mem = mem.Arranged(guess)
		}
		k, err := f.find()
		if err == nil {
			var is ram.Arrangement
			if is, err = k.arch.arrangement(k, mem, guess); err == nil {
				if is == guess {
					return k, nil
				}
				f.mem = mem.Arranged(is)
				return f.find()
			}
		}
		if errors.Is(err, errPlugged) {
			return nil, fmt.Errorf("find kernel: %w", err)
		}
		if errs = append(errs, err); errors.Is(err, errNoNotes) {
			break // pages are the same in every arrangement
		}
		if n == 0 && slices.Contains(f.seen, &arm64) {
			if !slices.Contains(f.seen, &amd64) { // otherwise one may be a guest of the other
				guesses, errs = guesses[:1], nil
			}
			guesses = append(guesses, mem.Guesses(arm64.machine)...)
		}
	}
	return nil, errs[0]
}
