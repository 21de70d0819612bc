package pair

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// rules checks values, each of which is valid by itself, against each other.
// Values that are missing have been reported already.
func (p *Pair) rules() []error {
	var errs []error
	add := func(key, hint, format string, args ...any) {
		errs = append(errs, p.problem(key, hint, format, args...))
	}
	p.partitionRules(add)
	p.diskRules(add)
	p.nicRules(add)
	services := unique{p: p, list: "services", add: add}
	for i, s := range p.Services {
		services.check(i, "name", s.Name)
		services.check(i, "unit", s.Unit)
		if s.Unit != "" && (p.Partitions[0].Root == "" || p.Partitions[1].Root == "") {
			add(fmt.Sprintf("services.%d.unit", i), "give both partitions root:, or write command:", "there is no systemd in the small guest")
		}
	}
	p.nfsRules(add)
	p.heartbeatRules(add)
	return errs
}

type addFunc func(key, hint, format string, args ...any)

func (p *Pair) partitionRules(add addFunc) {
	a, b := p.Partitions[0], p.Partitions[1]
	at := func(name, key string) string { return "partitions." + name + "." + key }
	if b.Root != "" && b.Root == a.Root {
		add(at(b.Name, "root"), "give each partition a copy", "is the root disk of %s too (line %d)", a.Name, p.line(at(a.Name, "root")))
	}
	for _, part := range p.Partitions {
		for i, d := range p.Disks {
			if part.Root != "" && slices.Contains(d.Images(), part.Root) {
				add(at(part.Name, "root"), "use two images", "is shared disk %s too (line %d)", d.Name, p.line(fmt.Sprintf("disks.%d.image", i)))
			}
		}
	}
}

// maxSerial is the maximum length, in bytes, of a virtio disk's serial number, by
// which the guest knows the disk (VIRTIO_BLK_ID_BYTES,
// include/uapi/linux/virtio_blk.h).
const maxSerial = 20

// mirrorSuffix is appended to the name of the first disk of a mirror to name the second.
const mirrorSuffix = ".1"

// Serials returns the serial numbers of the disk's images, in the order of Images.
func (d *Disk) Serials() []string { return []string{d.Name, d.MirrorName()}[:len(d.Images())] }

// MirrorName is the serial number of the second disk of a mirror.
func (d *Disk) MirrorName() string {
	if d.Mirror == "" {
		return ""
	}
	return d.Name + mirrorSuffix
}

// ownDisks are the names of disks that each partition has besides the shared ones.
var ownDisks = []string{"root", "staging", "rehearsal-0"}

func (p *Pair) diskRules(add addFunc) {
	u := unique{p: p, list: "disks", add: add}
	for i, d := range p.Disks {
		if len(d.Name) > maxSerial || slices.Contains(ownDisks, d.Name) || strings.HasPrefix(d.Name, "rehearsal") {
			add(fmt.Sprintf("disks.%d.name", i), fmt.Sprintf("use another name of at most %d bytes", maxSerial),
				"%q is too long, or one of our own (%s)", d.Name, strings.Join(ownDisks, ", "))
		}
		u.check(i, "name", d.Name)
		u.check(i, "image", d.Image)
		u.checkAt(fmt.Sprintf("disks.%d.mirror", i), "image", d.Mirror)
		if (d.Mirror != "" || d.LUKS != "") && !d.Type.Ext() {
			add(fmt.Sprintf("disks.%d.type", i), "put it on the disk itself, in a partition or in a linear logical volume, or use ext4", "%s on %s is not supported: its takeover is not shown, and that of XFS takes minutes",
				d.Type, strings.Join(d.Layers(), " and "))
		}
		if d.Mirror != "" && len(d.Name) > maxSerial-len(mirrorSuffix) {
			add(fmt.Sprintf("disks.%d.name", i), fmt.Sprintf("use one of at most %d bytes", maxSerial-len(mirrorSuffix)), "%q is too long for a disk with a mirror", d.Name)
		}
		u.check(i, "mount", d.Mount)
		if slices.Contains(guestDirs, d.Mount) && (p.Partitions[0].Root == "" || p.Partitions[1].Root == "") {
			add(fmt.Sprintf("disks.%d.mount", i), "choose a directory of its own, e.g. /srv", "hides what the small guest has in %s", d.Mount)
		}
		for j, earlier := range p.Disks[:i] {
			if d.Mount != "" && below(earlier.Mount, d.Mount) {
				add(fmt.Sprintf("disks.%d.mount", i), "list this disk first",
					"hides %s, mounted before (line %d)", earlier.Mount, p.line(fmt.Sprintf("disks.%d.mount", j)))
			}
		}
	}
}

func (p *Pair) nicRules(add addFunc) {
	u := unique{p: p, list: "nics", add: add}
	for i, n := range p.NICs {
		u.check(i, "name", n.Name)
		u.check(i, "mac", n.MAC.String())
		n.addressRules(i, &u)
	}
}

func (p *Pair) heartbeatRules(add addFunc) {
	h := p.Heartbeat
	switch {
	case h.Period < minPeriod:
		add("heartbeat.period", "use 20ms", "%v is shorter than %v", h.Period, minPeriod)
	case h.Limit > maxLimit:
		add("heartbeat.limit", "use 300ms", "%v is longer than %v", h.Limit, maxLimit)
	case h.Limit/minBeats < h.Period:
		add("heartbeat.limit", "use a limit of at least 3 periods: one late beat is not a death",
			"%v is less than %d periods of %v", h.Limit, minBeats, h.Period)
	}
}

// unique finds values that two items of a list share.
type unique struct {
	p    *Pair
	list string
	add  addFunc
	seen map[[2]string]string // the key where a kind of value was first seen
}

// check records that item i has a value, and reports it if an earlier one has it too.
func (u *unique) check(i int, key, value string) {
	u.checkAt(u.list+"."+strconv.Itoa(i)+"."+key, key, value)
}

// checkAt is check for a value of some kind at any key.
func (u *unique) checkAt(at, kind, value string) {
	if value == "" {
		return
	}
	if first, taken := u.first(at, kind, value); taken {
		u.add(at, "give each its own", "%s is taken (line %d)", value, u.p.line(first))
	}
}

// first returns the key where a value of some kind was first seen, and whether that was before
// this call. If it was not, first records the value.
func (u *unique) first(at, kind, value string) (key string, before bool) {
	if key, before = u.seen[[2]string{kind, value}]; before {
		return key, true
	}
	if u.seen == nil {
		u.seen = make(map[[2]string]string)
	}
	u.seen[[2]string{kind, value}] = at
	return at, false
}
