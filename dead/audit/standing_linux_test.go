package audit_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/internal/lab/tier"
)

// wrongBefore are faults of file systems that a kernel does not notice when it mounts them, as commands of debugfs(8).
// It notices some of them while it works, and records an error.
var wrongBefore = map[string]string{
	"sectors of a file":           "sif /a/f blocks 4242",
	"sectors of a directory":      "sif /a blocks 4242",
	"links of a file":             "sif /a/g links_count 7",
	"links of a directory":        "sif /b links_count 9",
	"time of deletion":            "sif /a/g dtime 12345",
	"blocks behind the end":       "sif /b/h size 10",
	"size of a directory":         "sif /b size 8192",
	"free blocks of a group":      "set_bg 0 free_blocks_count 77\nset_bg 0 checksum calc",
	"free inodes of a group":      "set_bg 0 free_inodes_count 77\nset_bg 0 checksum calc",
	"directories of a group":      "set_bg 0 used_dirs_count 77\nset_bg 0 checksum calc",
	"a block that nobody has":     "setb 3000\nset_bg 0 checksum calc",
	"an owned block that is free": "freeb BLOCK",
	"an inode that nobody has":    "seti <500>",
	"an inode that is free":       "freei /b/h",
	"a name that is not counted":  "ln /a/g /b/ghost",
	"a name twice":                "ln /a/f /b/same\nln /a/g /b/same",
	"no name":                     "unlink /a/g",
	"size of a symbolic link":     "sif /a/s size 5",
	"block of attributes":         "sif /b/h file_acl 3000",
	"a fragment":                  "sif /b/h faddr 1",
	"size of a FIFO":              "mknod /b/fifo p\nsif /b/fifo size 7",
	"index of a file":             "sif /b/h flags 0x81000",
	"errors on record":            "ssv state 2\nssv error_count 3\nssv first_error_time 12345",
	"another parent":              "unlink /b/c/..\nln /a /b/c/..",
	"no mode":                     "sif /b/h mode 0",
	"counts of the superblock":    "ssv free_blocks_count 5\nssv free_inodes_count 5",
}

// ordered are things that a kernel does on request, but that most programs never request.
var ordered = map[string]string{
	"years":    "touch -d 2340-01-01 a/f; touch -d 1905-01-01 a/g; touch -d 2040-01-01 b/h",
	"label":    "tune2fs -L other $DEV",
	"checks":   "tune2fs -c 7 -i 3d -m 1 -e remount-ro -o acl -E stride=4 $DEV; touch b/new",
	"hash":     "tune2fs -E hash_alg=tea $DEV; touch b/new",
	"grow":     "truncate -s 200M $IMAGE; losetup -c $DEV; resize2fs $DEV",
	"flags":    "chattr +i a/f; chattr +a a/g; chattr +j b/h; chattr +dAsSD b; chattr +T large",
	"extents":  "chattr +e a/f; chattr -e a/g",
	"defrag":   "e4defrag b/h a/f",
	"nodes":    "mknod b/dev c 1 3; mkfifo b/fifo; ln -s x b/s; ln -s $(printf %0200d) b/long; ln a/f b/hard",
	"holes":    "fallocate -l 1M b/h; fallocate -p -o 4096 -l 8192 b/h; fallocate -n -o 2M -l 1M a/g; fallocate -c -o 0 -l 4096 a/f; fallocate -i -o 0 -l 4096 a/f; truncate -s 3 a/g",
	"remove":   "rm -r large b; mkdir b; touch b/1",
	"remount":  "mount -o remount,ro .; mount -o remount,rw .; touch b/again",
	"tables":   "touch b/1; sleep 12; touch b/2", // ext4lazyinit notes which tables are zeroed, without checksums, too
	"exchange": "mv a/f x; mv b/h a/f; mv x b/h; mv b/c a/; mkdir -p d/e/f; mv d b/",
	"direct":   "dd if=/dev/zero of=b/direct bs=64k count=4 oflag=direct; dd if=/dev/zero of=b/h bs=4k seek=50 count=1 oflag=direct",
}

// work is what programs do with files and directories that have such a fault, or are near one.
const work = `for f in a/f a/g b/h; do head -c 70000 /dev/zero >>$f; chmod 640 $f; done
for f in a b b/c large; do echo $f >$f/new; done; mkdir b/c/made; chown -h 7:7 a/s b/fifo`

// TestStanding makes a kernel, the host's, commit a transaction to a file system with faults, and
// unusual transactions. None of them may be taken for damage of its memory.
func TestStanding(t *testing.T) {
	if os.Geteuid() != 0 {
		tier.Lacks(t, "mounting takes root")
	}
	all := make(map[string][2]string)
	for name, faults := range wrongBefore {
		all["wrong before/"+name] = [2]string{faults, work}
	}
	for name, orders := range ordered {
		all["ordered/"+name] = [2]string{"", orders}
	}
	for name, do := range all {
		for kind := range features {
			t.Run(name+"/"+kind, func(t *testing.T) {
				if kind != "ext4" || strings.Contains(do[1], "sleep") {
					tier.Full(t, "another kind of file system, or one that takes long")
				}
				was, changed := committed(t, kind, do[0], do[1])
				disk, err := os.Open(was)
				if err != nil {
					t.Fatal(err)
				}
				defer disk.Close()
				standing(t, disk, changed)
				if do[0] != "" {
					// The kernel's record of an error in the superblock may come after the transaction: a work item
					// writes it (fs/ext4/super.c, flush_stashed_error_work).
					delete(changed, map[bool]addr.Block{true: 1}[kind == "1k"])
					standing(t, disk, changed)
				}
				if err := (audit.Memory{}).Plausible(disk, changed, 0); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// standing checks that a transaction is not taken for damage of memory.
func standing(t *testing.T, disk *os.File, changed map[addr.Block][]byte) {
	t.Helper()
	v, err := audit.Check(disk, changed)
	if err != nil || !v.Clean && !v.Foreign {
		t.Errorf("of %d blocks: %v, %+v", len(changed), err, v)
	}
}

// committed returns the path of a file system with faults, and what its log has after programs worked with it.
func committed(t *testing.T, kind, faults, work string) (was string, changed map[addr.Block][]byte) {
	t.Helper()
	image := tree(t, kind)
	if strings.Contains(faults, "BLOCK") {
		out, err := exec.Command("debugfs", "-R", "bmap /b/h 0", image).Output()
		if err != nil {
			t.Fatal(err)
		}
		faults = strings.ReplaceAll(faults, "BLOCK", string(bytes.TrimSpace(out)))
	}
	debugfs(t, image, faults)
	was, at := image+".was", image+".at"
	run(t, "cp", image, was)
	if strings.Contains(work, "resize2fs") {
		run(t, "truncate", "-s", "200M", was)
	}
	device := strings.TrimSpace(run(t, "losetup", "-f", "--show", image))
	defer run(t, "losetup", "-d", device)
	top := t.TempDir()
	run(t, "mount", "-o", "commit=600", device, top)
	defer run(t, "umount", top)
	cmd := exec.Command("sh", "-c", work)
	cmd.Dir, cmd.Env = top, append(os.Environ(), "DEV="+device, "IMAGE="+image)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Logf("%v: %s", err, out) // as the fault has it
	}
	syncFS(t, top)
	run(t, "cp", image, at)
	return was, logged(t, at)
}

// run runs a program, and returns its output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		if name == "losetup" || name == "mount" {
			tier.Lacks(t, fmt.Sprintf("%s: %v: %s", name, err, out))
		}
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

func syncFS(t *testing.T, top string) {
	t.Helper()
	d, err := os.Open(top)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		t.Log(err) // as the fault has it
	}
}

// logged returns the last version of each block that the log of a disk has.
func logged(t *testing.T, path string) map[addr.Block][]byte {
	t.Helper()
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	log, err := jbd2.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	scan, err := log.Scan()
	if err != nil {
		t.Fatal(err)
	}
	changed := make(map[addr.Block][]byte)
	for _, n := range scan.Newest() {
		if changed[n.Home], err = log.Read(n.LoggedBlock); err != nil {
			t.Fatal(err)
		}
	}
	return changed
}
