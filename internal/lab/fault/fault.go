// Package fault has our kernel module that makes a kernel fail, in ways that a user's
// program cannot bring about. scripts/modules.sh builds it for kernels of the matrix.
package fault

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/live/dirs"
)

// Ways are the faults that the module can cause, as its source lists them.
var Ways = []string{"panic", "oops", "oops-irq", "bug", "stack", "hang-all", "hang-one", "hang-loop", "hang-lock"}

// Unmet is the reason why this machine cannot have the module.
type Unmet struct{ Reason string }

func (u Unmet) Error() string { return u.Reason }

// Module is Build for our module.
func Module(kernel string) (module, dir string, err error) { return Build(kernel, "fault") }

// Build returns the path of a module that scripts/modules.sh knows, for a kernel named as
// in scripts/kernels.sh, and the kernel's directory (dirs.Kernel). It builds the module
// if need be. The error may be an Unmet.
func Build(kernel, name string) (module, dir string, err error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", "", fmt.Errorf("find scripts: %w", err)
	}
	script := filepath.Join(strings.TrimSpace(string(root)), "scripts", "modules.sh")
	out, err := exec.Command(script, kernel, name).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 3 {
		return "", "", Unmet{string(out)}
	}
	if err != nil {
		return "", "", fmt.Errorf("%s: %w: %s", script, err, out)
	}
	cache, err := dirs.Cache()
	if err != nil {
		return "", "", err
	}
	dir = filepath.Join(cache, "kernels", kernel)
	_, modules, err := dirs.Kernel(dir)
	if err != nil {
		return "", "", err
	}
	return filepath.Join(cache, "modules", filepath.Base(modules), name+".ko"), dir, nil
}
