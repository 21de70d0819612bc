package disk

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Stretch is a run of bytes of a disk.
type Stretch struct{ Off, Len int64 }

// Where says which part of a disk is meant: all of it, unless a field is set.
type Where struct {
	Part   int    `json:"partition,omitempty"` // the number of a partition
	Volume string `json:"lvm,omitempty"`       // a logical volume: GROUP/NAME
}

// Whole reports whether the whole disk is meant.
func (w Where) Whole() bool { return w == Where{} }

// Name is what people call it.
func (w Where) Name() string {
	switch {
	case w.Volume != "":
		return "logical volume " + w.Volume
	case w.Part != 0:
		return fmt.Sprintf("partition %d", w.Part)
	}
	return "the whole disk"
}

// Mapper is the name that the device mapper has for a logical volume: hyphens in its two names are doubled (LVM2, libdm,
// dm_build_dm_name). It is empty for anything else.
func (w Where) Mapper() string {
	return strings.ReplaceAll(strings.ReplaceAll(w.Volume, "-", "--"), "/", "-")
}

// Area is a part of a disk that a file system may be on.
type Area struct {
	Where
	At []Stretch // in the order of the area's own bytes; adjacent stretches are joined
}

// Len returns the size in bytes.
func (a Area) Len() (n int64) {
	for _, s := range a.At {
		n += s.Len
	}
	return n
}

// Areas returns the parts of a disk of size bytes: its partitions or, if it has no partition table, the whole disk; and
// the linear logical volumes in either. It fails if the partition table is damaged.
func Areas(r io.ReaderAt, size int64) ([]Area, []Unusable, error) {
	parts, err := Table(r, size)
	if errors.Is(err, ErrNoTable) {
		parts, err = []Partition{{Len: size}}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var areas []Area
	for _, p := range parts {
		areas = append(areas, Area{Where{Part: p.Number}, []Stretch{{p.Off, p.Len}}})
	}
	found, unusable := volumes(r, areas)
	return append(areas, found...), unusable, nil
}

// At returns the part of a disk of size bytes that is meant.
func At(r io.ReaderAt, size int64, w Where) (Area, error) {
	switch {
	case w.Whole():
		return Area{w, []Stretch{{0, size}}}, nil
	case w.Volume == "":
		p, err := Find(r, size, w.Part)
		if err != nil {
			return Area{}, err
		}
		return Area{w, []Stretch{{p.Off, p.Len}}}, nil
	}
	areas, unusable, err := Areas(r, size)
	if err != nil {
		return Area{}, err
	}
	var found []Area
	var has []string
	for _, a := range areas {
		if a.Where == w {
			found = append(found, a)
		} else if a.Volume != "" {
			has = append(has, a.Volume)
		}
	}
	for _, u := range unusable {
		if u.Where == w || u.Volume == "" && len(found) == 0 { // it may have been in a physical volume that cannot be read
			return Area{}, u
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return Area{}, fmt.Errorf("there are %d of %s: rename one of their volume groups (vgrename)", len(found), w.Name())
	case len(has) == 0:
		return Area{}, fmt.Errorf("no %s, nor any other", w.Name())
	}
	return Area{}, fmt.Errorf("no %s; there is %s", w.Name(), strings.Join(has, ", "))
}
