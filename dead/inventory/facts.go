package inventory

import (
	"errors"
	"slices"
	"time"

	"understudy.dev/understudy/dead/kernel"
)

// Facts are what an image says of the kernel in it. What is unknown is empty.
type Facts struct {
	Release      string    `json:"release"`
	Architecture string    `json:"architecture"` // as uname -m has it
	Banner       string    `json:"banner"`
	Host         string    `json:"host,omitempty"`
	CommandLine  string    `json:"command_line,omitempty"`
	KASLR        uint64    `json:"kaslr_offset"` // in bytes
	PagingLevels int       `json:"paging_levels"`
	PageSize     int64     `json:"page_size"`        // of its base pages, in bytes
	Format       string    `json:"format,omitempty"` // of the image
	Memory       uint64    `json:"memory_bytes"`     // that the image has
	Boot         time.Time `json:"boot,omitzero"`
	Now          time.Time `json:"died,omitzero"` // at the last tick
	Panic        string    `json:"panic,omitempty"`
	PanicProblem string    `json:"panic_problem,omitempty"` // why it is not known whether there is a message
	PanicCPU     *int      `json:"panic_cpu,omitempty"`
}

// Facts reads what the image says of its kernel.
func (m *Image) Facts() Facts {
	k := m.Kernel
	f := Facts{Release: k.Release, Architecture: k.Architecture(), Banner: k.Banner, KASLR: k.Offset, PagingLevels: k.PagingLevels(), PageSize: k.Pages().Size(), Format: m.Info().Format}
	for _, r := range m.mem.Ranges() {
		f.Memory += r.Len()
	}
	if m.Clock != nil {
		f.Boot, f.Now = m.Clock.Boot, m.Clock.Now
	}
	f.Host, f.CommandLine = k.Hostname(), m.commandLine()
	message, err := k.PanicMessage()
	if err != nil && !errors.Is(err, kernel.ErrNotFound) {
		f.PanicProblem = err.Error()
	}
	f.Panic = message
	if cpu, panicked, err := k.PanicCPU(); err == nil && panicked {
		f.PanicCPU = &cpu
	}
	return f
}

// NotDead reports whether the kernel is known not to have panicked when its memory was
// taken. It may have hung, or it was alive and went on.
func (m *Image) NotDead() bool {
	_, panicked, err := m.Kernel.PanicCPU()
	if errors.Is(err, kernel.ErrNotFound) { // its symbol table has no variables: look for its message
		_, err := m.Kernel.PanicMessage()
		return errors.Is(err, kernel.ErrNotFound)
	}
	return err == nil && !panicked
}

// maxCommandLine is COMMAND_LINE_SIZE of x86.
const maxCommandLine = 2048

func (m *Image) commandLine() string {
	at, err := m.Kernel.Symbol("saved_command_line")
	if err != nil {
		return ""
	}
	if at, err = m.Kernel.Pointer(at); err != nil {
		return ""
	}
	s, err := m.Kernel.CString(at, maxCommandLine)
	if err != nil {
		return ""
	}
	return s
}

// MountedOn returns where the file system is mounted, and how many mounts of it there are
// in other mount namespaces than that of the kernel's first task. If it is mounted in others
// only, paths are the paths there. paths is empty if they cannot be read.
func (f *FileSystem) MountedOn() (paths []string, elsewhere int) {
	var others []string
	for at, err := range f.image.Cache.MountPoints(f.Super) {
		switch {
		case err != nil:
		case at.Elsewhere:
			elsewhere++
			others = append(others, at.Path)
		default:
			paths = append(paths, at.Path)
		}
	}
	if len(paths) == 0 {
		paths, elsewhere = others, 0
	}
	slices.Sort(paths)
	return slices.Compact(paths), elsewhere
}
