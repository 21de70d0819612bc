package main

import (
	"os/exec"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
)

// settingsOf prints what there is: type, links, inode flags, project and extent sizes, whether it is the top of a subvolume,
// and extended attributes.
const settingsOf = `
cd /mnt
xfs=; ! grep -q ' /mnt xfs ' /proc/mounts || xfs=yes
find . | sort | while read f; do
	top=; [ $(stat -c %i $f) != 256 ] || top=subvolume
	[ -z "$xfs" ] || top="$(xfs_io -r -c stat $f | grep -E 'xflags|projid|extsize' | sed 's/\[.*//' | tr '\n' ' ')"
	links=; [ -d $f ] || links=$(stat -c %h $f)
	echo $f $(stat -c %A $f) $links $(lsattr -d $f | cut -d' ' -f1) $top
done
getfattr -R -P -h -d -m - -e hex . | sort
`

// What is on the disk before: a directory whose files are of a project, and a file that is to be compressed.
var settingsBefore = map[string]string{
	"xfs":   settingsOld + "xfs_io -c 'chproj 42' -c 'chattr +P' /mnt/project\nsync\n",
	"btrfs": settingsOld + "setfattr -n btrfs.compression -v zstd /mnt/dir/fixed\nsync\n",
}

const settingsOld = `
mkdir /mnt/dir /mnt/project
for f in old noatime fixed; do echo $f >/mnt/dir/$f; done
touch /mnt/dir/empty
chattr +A /mnt/dir/noatime
`

// The same work on both, and then what only one of them has. A project is given to a directory with all its files; one file leaves it,
// and one has a name in another directory, too.
const settingsWork = `
chattr +d /mnt/dir/old
chattr -A /mnt/dir/noatime
echo more >>/mnt/dir/fixed
chattr +i /mnt/dir/fixed
for f in i a A d S; do echo $f >/mnt/dir/$f; chattr +$f /mnt/dir/$f; done
mkdir /mnt/dir/locked /mnt/dir/log
echo in >/mnt/dir/locked/in
chattr +i /mnt/dir/locked
chattr +a /mnt/dir/log
echo in >/mnt/dir/log/in
`

var settingsOwn = map[string]string{
	"xfs": `
mkdir /mnt/new
xfs_io -c 'chproj 7' -c 'chattr +P' /mnt/new
echo a >/mnt/new/a
mkdir /mnt/new/sub
echo b >/mnt/new/sub/b
xfs_io -c 'extsize 64k' /mnt/new/sub
head -c 100000 /dev/zero >/mnt/new/sub/inherits
xfs_io -f -c 'extsize 128k' -c 'cowextsize 256k' -c 'pwrite 0 100k' /mnt/dir/hint >/dev/null
xfs_io -c 'extsize 64k' -c 'pwrite 0 100k' /mnt/dir/empty >/dev/null
xfs_io -c 'chproj 9' /mnt/dir/old
echo own >/mnt/project/own
xfs_io -c 'chproj 0' /mnt/project/own
echo linked >/mnt/dir/linked
xfs_io -c 'chproj 42' /mnt/dir/linked
ln /mnt/dir/linked /mnt/project/linked
echo inherits >/mnt/project/inherits
`, "btrfs": `
mkdir /mnt/new
chattr +C /mnt/new
echo a >/mnt/new/a
mkdir /mnt/new/sub
touch /mnt/dir/image
chattr +C /mnt/dir/image
head -c 300000 /dev/zero | tr '\0' i >>/mnt/dir/image
chattr +D /mnt/new/sub
chattr +C /mnt/dir/empty
echo more >>/mnt/dir/empty
for f in zlib zstd none; do touch /mnt/dir/$f; setfattr -n btrfs.compression -v $f /mnt/dir/$f; echo $f >>/mnt/dir/$f; done
chattr +i /mnt/dir/zlib
btrfs subvolume create /mnt/dir/made >/dev/null
echo in >/mnt/dir/made/in
mkdir /mnt/dir/made/below
`,
}

// TestRemadeSettings lets a kernel die with inode flags, projects and hints of extent sizes, of new files and of old ones, that XFS or btrfs has in
// memory only, and with a new subvolume. All of it is back.
func TestRemadeSettings(t *testing.T) {
	together(t)
	var paths []string
	for _, program := range []string{"setfattr", "getfattr", "lsattr", "chattr", "xfs_io", "btrfs"} {
		at, err := exec.LookPath(program)
		if err != nil {
			tier.Lacks(t, err.Error()+"; run scripts/setup.sh")
		}
		paths = append(paths, at)
	}
	programs, err := initramfs.Programs("", paths...)
	if err != nil {
		t.Fatal(err)
	}
	for _, kernel := range []string{fixture.Default, "6.12-cloud", "newest-cloud"} {
		for _, kind := range []string{"xfs", "btrfs"} {
			t.Run(kernel+" "+kind, func(t *testing.T) {
				if kernel != fixture.Default || kind != "xfs" {
					tier.Full(t, "inode flags of "+kind+" on "+kernel)
				}
				remadeSettings(t, kernel, kind, programs)
			})
		}
	}
}

func remadeSettings(t *testing.T, kernel, kind string, programs []initramfs.File) {
	was, is, r := remade(t, kernel, kind, programs, settingsBefore[kind]+settingsWork+settingsOwn[kind], settingsOf)
	want := map[string]string{"xfs": "projid = 42", "btrfs": "subvolume"}[kind]
	if was != is || !strings.Contains(was, want) || strings.Count(was, "\n") < 20 {
		t.Errorf("there was\n%s\nand there is\n%s\nof %+v", was, is, r.Applied)
	}
}
