package pagecache

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Attribute is an extended attribute as programs have it (xattr(7)).
type Attribute struct {
	Name  string // with its namespace
	Value []byte
}

// ErrAttributes means that memory does not have all extended attributes of an inode, or may not have them all.
var ErrAttributes = errors.New("its extended attributes are not all in memory")

// errAttribute means that the bytes of an inode's attributes are none.
var errAttribute = errors.New("damaged extended attributes")

// The attributes that have an ACL.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// Flags of an attribute of XFS (fs/xfs/libxfs/xfs_da_format.h, XFS_ATTR_ROOT, SECURE, PARENT, INCOMPLETE).
const (
	xfsAttrRoot       = 0x02
	xfsAttrSecure     = 0x04
	xfsAttrParent     = 0x08
	xfsAttrIncomplete = 0x80
)

// parseXFSAttributes reads the attributes in an inode of XFS (fs/xfs/libxfs/xfs_da_format.h, struct xfs_attr_sf_hdr and
// xfs_attr_sf_entry). b is the content of the fork. Pointers to parents are left out: the file system makes them by itself.
func parseXFSAttributes(b []byte) ([]Attribute, error) {
	const header, entry = 4, 3
	if len(b) < header || int(binary.BigEndian.Uint16(b)) != len(b) {
		return nil, fmt.Errorf("%w: a fork of %d bytes begins with %x", errAttribute, len(b), b[:min(header, len(b))])
	}
	var out []Attribute
	count, rest := int(b[2]), b[header:]
	for n := range count {
		if len(rest) < entry || len(rest) < entry+int(rest[0])+int(rest[1]) || rest[0] == 0 {
			return nil, fmt.Errorf("%w: %d of %d, behind the end", errAttribute, n, count)
		}
		flags, name := rest[2], rest[entry:][:rest[0]]
		a := Attribute{string(name), rest[entry+len(name):][:rest[1]]}
		rest = rest[entry+len(name)+len(a.Value):]
		if flags&(xfsAttrParent|xfsAttrIncomplete) != 0 {
			continue
		}
		var err error
		if a, err = a.ofXFS(flags); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the last of %d", errAttribute, len(rest), count)
	}
	return out, nil
}

// Magic numbers of blocks with attributes of XFS (fs/xfs/libxfs/xfs_da_format.h, XFS_ATTR3_LEAF_MAGIC, XFS_DA3_NODE_MAGIC).
const (
	xfsLeafMagic = 0x3bee
	xfsNodeMagic = 0x3ebe
)

// xfsAttrLocal says that an attribute has its value beside its name (XFS_ATTR_LOCAL).
const xfsAttrLocal = 0x01

// parseXFSLeaf reads the attributes in a block of XFS, which must say that it is at a sector, and of an inode
// (fs/xfs/libxfs/xfs_da_format.h, struct xfs_attr3_leafblock, xfs_attr_leaf_entry and xfs_attr_leaf_name_local). A block above the
// leaves has none.
func parseXFSLeaf(b []byte, sector, ino uint64) ([]Attribute, error) {
	const header, entry, name = 80, 8, 3
	if len(b) < header || binary.BigEndian.Uint64(b[16:]) != sector || binary.BigEndian.Uint64(b[48:]) != ino {
		return nil, fmt.Errorf("%w: the block at sector %d is another's, or has only a value", errAttribute, sector)
	}
	switch magic := binary.BigEndian.Uint16(b[8:]); magic {
	case xfsNodeMagic:
		return nil, nil
	case xfsLeafMagic:
	default:
		return nil, fmt.Errorf("%w: a block of type %#x", errAttribute, magic)
	}
	count := int(binary.BigEndian.Uint16(b[56:]))
	if count > (len(b)-header)/entry {
		return nil, fmt.Errorf("%w: %d in a block", errAttribute, count)
	}
	var out []Attribute
	for n := range count {
		e := b[header+n*entry:]
		at, flags := int(binary.BigEndian.Uint16(e[4:])), e[6]
		if flags&(xfsAttrParent|xfsAttrIncomplete) != 0 {
			continue
		}
		if flags&xfsAttrLocal == 0 {
			return nil, errors.New("the value of one has blocks of its own")
		}
		if at < header+count*entry || at+name > len(b) {
			return nil, fmt.Errorf("%w: a name at %d", errAttribute, at)
		}
		value, length := int(binary.BigEndian.Uint16(b[at:])), int(b[at+2])
		if at += name; length == 0 || at+length+value > len(b) {
			return nil, fmt.Errorf("%w: a name of %d bytes and a value of %d at %d", errAttribute, length, value, at)
		}
		a, err := Attribute{string(b[at:][:length]), b[at+length:][:value]}.ofXFS(flags)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// ofXFS is an attribute of XFS as programs have it. Its name is without a namespace, and an ACL is the trusted attribute
// SGI_ACL_FILE or SGI_ACL_DEFAULT (fs/xfs/xfs_acl.h, xfs_acl.c).
func (a Attribute) ofXFS(flags byte) (Attribute, error) {
	var err error
	switch root := flags&xfsAttrRoot != 0; {
	case root && flags&xfsAttrSecure != 0:
		err = fmt.Errorf("%w: flags %#x", errAttribute, flags)
	case root && a.Name == "SGI_ACL_FILE":
		a.Name = accessACL
		a.Value, err = aclOfXFS(a.Value)
	case root && a.Name == "SGI_ACL_DEFAULT":
		a.Name = defaultACL
		a.Value, err = aclOfXFS(a.Value)
	case root:
		a.Name = "trusted." + a.Name
	case flags&xfsAttrSecure != 0:
		a.Name = "security." + a.Name
	default:
		a.Name = "user." + a.Name
	}
	return a, err
}

// aclOfXFS is an ACL of XFS (fs/xfs/libxfs/xfs_format.h, struct xfs_acl) as programs have it (include/uapi/linux/posix_acl_xattr.h).
func aclOfXFS(b []byte) ([]byte, error) {
	const (
		entry     = 12
		version   = 2 // POSIX_ACL_XATTR_VERSION
		user      = 2 // ACL_USER
		group     = 8 // ACL_GROUP
		undefined = 0xffffffff
	)
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b))*entry != uint64(len(b)-4) {
		return nil, fmt.Errorf("%w: an ACL of %d bytes", errAttribute, len(b))
	}
	out := binary.LittleEndian.AppendUint32(nil, version)
	for b = b[4:]; len(b) > 0; b = b[entry:] {
		tag, id := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if tag != user && tag != group {
			id = undefined
		}
		out = binary.LittleEndian.AppendUint16(out, uint16(tag))
		out = binary.LittleEndian.AppendUint16(out, binary.BigEndian.Uint16(b[8:]))
		out = binary.LittleEndian.AppendUint32(out, id)
	}
	return out, nil
}

// parseBtrfsAttributes reads an item with attributes of btrfs: those whose names have the same hash (include/uapi/linux/btrfs_tree.h,
// struct btrfs_dir_item). Names and ACLs are as programs have them.
func parseBtrfsAttributes(b []byte) ([]Attribute, error) {
	const header = 30
	var out []Attribute
	for len(b) > 0 {
		if len(b) < header {
			return nil, fmt.Errorf("%w: %d bytes", errAttribute, len(b))
		}
		value, name := int(binary.LittleEndian.Uint16(b[25:])), int(binary.LittleEndian.Uint16(b[27:]))
		if name == 0 || len(b) < header+name+value {
			return nil, fmt.Errorf("%w: a name of %d bytes and a value of %d in %d", errAttribute, name, value, len(b))
		}
		out = append(out, Attribute{string(b[header:][:name]), b[header+name:][:value]})
		b = b[header+name+value:]
	}
	return out, nil
}
