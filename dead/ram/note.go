package ram

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// Names of notes in dumps: the kernel's description of itself (kernel/crash_core.c,
// VMCOREINFO_NOTE_NAME), and makedumpfile's list of what it overwrote
// (elf_info.h, ERASEINFO_NOTE_NAME).
const (
	noteVMCoreInfo = "VMCOREINFO"
	noteEraseInfo  = "ERASEINFO"
)

const noteHeadSize = 12 // Elf64_Nhdr: sizes of name and descriptor, type

// readNotes reads the notes of a PT_NOTE segment.
func readNotes(in input, s elfSegment) ([]byte, error) {
	if s.fileSize > elfMaxNotes {
		return nil, malformed(elfName, "%d bytes of notes", s.fileSize)
	}
	if err := inside(elfName, in, s.off, s.fileSize); err != nil {
		return nil, err
	}
	b := make([]byte, s.fileSize)
	if _, err := in.ReadAt(b, int64(s.off)); err != nil {
		return nil, fmt.Errorf("read notes: %w", err)
	}
	return b, nil
}

// elfNotes yields the names and descriptors of ELF notes. Notes and their parts are
// aligned to 4 bytes. It ends at the first note that is not whole; the kernel pads its
// notes with zeros, which look like notes without a name.
func elfNotes(b []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for len(b) >= noteHeadSize {
			nameSize := uint64(binary.LittleEndian.Uint32(b))
			descSize := uint64(binary.LittleEndian.Uint32(b[4:]))
			desc := noteHeadSize + (nameSize+3)&^3
			end := desc + descSize
			if end > uint64(len(b)) {
				return
			}
			name := b[noteHeadSize : noteHeadSize+nameSize]
			for len(name) > 0 && name[len(name)-1] == 0 {
				name = name[:len(name)-1]
			}
			if !yield(string(name), b[desc:end:end]) {
				return
			}
			b = b[min(uint64(len(b)), (end+3)&^3):]
		}
	}
}

// takeNotes takes what matters from a dump's notes.
func (im *image) takeNotes(notes []byte) error {
	im.notes = append(im.notes, notes...)
	for name, desc := range elfNotes(notes) {
		switch name {
		case noteVMCoreInfo:
			if im.note == nil && len(desc) > 0 {
				im.note = desc
			}
		case noteEraseInfo:
			return erased(im.info.Format)
		}
	}
	return nil
}

// erased returns the error for a dump in which makedumpfile overwrote data that it was told
// to hide: the bytes that are there now look like any others.
func erased(format string) error {
	return &FormatError{
		Format: format,
		Reason: "makedumpfile erased data in it, and wrote other bytes in its place (eraseinfo)",
		Hint:   "dump again without --config and --eppic",
	}
}
