package hint

import (
	"errors"
	"io/fs"
	"testing"
)

func TestError(t *testing.T) {
	for want, e := range map[string]*Error{
		"open disk /d: file does not exist\n  Name another.": New("open disk /d", fs.ErrNotExist, "Name another."),
		"open disk /d: file does not exist":                  New("open disk /d", fs.ErrNotExist, ""),
	} {
		if got := e.Error(); got != want || !errors.Is(e, fs.ErrNotExist) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
