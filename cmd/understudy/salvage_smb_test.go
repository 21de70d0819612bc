package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/initramfs"
)

// smbScript is nfsScript with the kernel's SMB server. The server grants a lease on a file to one client, since a
// client without one writes through. The client has read all of "old", nothing of "part", and may not read "log".
const smbScript = `
echo 1000000 >/proc/sys/vm/dirty_writeback_centisecs
echo 1000000 >/proc/sys/vm/dirty_expire_centisecs
ip link set lo up
mkdir /client
mount -t ext4 /dev/vda /mnt
mkdir -p /mnt/share/top/dir
seq 1 3000 >/mnt/share/top/old
seq 1 3000 >/mnt/share/top/part
echo begun >/mnt/share/top/dir/log
sync
mkdir -p /run /tmp
/usr/sbin/ksmbd.mountd -n -p 445 -c /etc/smb.conf -u /etc/users &
until [ -n "$(netstat -ltn | grep ':445 ')" ]; do sleep 1; done
mount -t cifs -o username=nobody,guest,nodfs,vers=3.0 //127.0.0.1/Pub/top /client
cat /client/old >/dev/null
sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; done; exec sleep 1000' >/client/dir/new &
new=$!
sh -c 'printf patched; exec sleep 1000' 1<>/client/old &
old=$!
sh -c 'printf patched; exec sleep 1000' 1<>/client/part &
part=$!
sh -c 'echo appended; exec sleep 1000' >>/client/dir/log &
log=$!
for at in $new:8893 $old:7 $part:7 $log:15; do
	until grep -q "^pos:.*[^0-9]${at#*:}\$" /proc/${at%%:*}/fdinfo/1; do sleep 1; done
done
take before
ip link set lo down
sync &
sleep 3
crash
`

// smbServer is a configuration of the kernel's SMB server, with access for everybody.
const smbServer = `[global]
	map to guest = bad user
	guest account = root
	smb2 leases = yes
[pub]
	path = /mnt/share
	guest ok = yes
	read only = no
`

// TestUnsentSMB checks that what an SMB client had not sent is listed, by the paths on its server, and
// extracted; of a page that was never filled, only the bytes that were written.
func TestUnsentSMB(t *testing.T) {
	tier.Full(t, "a client of SMB")
	vm(t)
	s := scene.Play(t, scene.Spec{
		// The kernel's own server in 6.1 grants no lease without an oops in opinfo_put, and Debian 12's programs for it
		// do not work with the newest kernel.
		Kernel: "6.12-cloud", Memory: 384 << 20,
		Modules: []string{"ext4", "ecb|", "cmac|", "sha256|sha256_ssse3|", "sha512|sha512_ssse3|", "ccm", "gcm", "md4|", "nls_utf8", "ksmbd", "cifs"},
		Files:   smbFiles(t),
		Disks:   []scene.Disk{{Size: 64 << 20, Mkfs: []string{"mkfs.ext4", "-qF", "-b", "4096"}}},
		Script:  smbScript,
	})
	for name, memory := range map[string]string{"not sent": s.Memory("before"), "being sent": s.RAM} {
		t.Run(name, func(t *testing.T) { unsentToSMB(t, memory) })
	}
}

// smbFiles returns the server's programs, and the files that they read.
func smbFiles(t *testing.T) []initramfs.File {
	cache, err := dirs.Cache()
	if err != nil {
		t.Fatal(err)
	}
	files, err := initramfs.Programs(filepath.Join(cache, "smb"), "/usr/sbin/ksmbd.mountd")
	if err != nil {
		tier.Lacks(t, fmt.Sprint(err, "; run scripts/setup.sh"))
	}
	return append(files, initramfs.Text("/etc/smb.conf", smbServer, 0o644), initramfs.Text("/etc/users", "", 0o644),
		initramfs.Text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n", 0o644), initramfs.Text("/etc/group", "root:x:0:\n", 0o644))
}

// unsentToSMB checks that a memory has what smbScript left in it.
func unsentToSMB(t *testing.T, memory string) {
	long, old := seq(2000), seq(3000)
	copy(old, "patched")
	type file struct {
		content []byte
		written inventory.Range
		exact   bool // nothing else was unsent
	}
	files := map[string]file{
		"Pub/top/dir/new": {long, inventory.Range{0, int64(len(long))}, true},
		"Pub/top/old":     {old, inventory.Range{0, 7}, false},
		"Pub/top/part":    {old, inventory.Range{0, 7}, true},
		"Pub/top/dir/log": {[]byte("begun\nappended\n"), inventory.Range{6, 9}, true},
	}
	dir, fs := extractRemote(t, memory, "cifs")
	if len(fs.Files) != len(files) {
		t.Fatalf("%+v", fs)
	}
	for _, f := range fs.Files {
		want, ok := files[f.Path]
		if !ok || int(f.Size) != len(want.content) || len(f.Ranges) != 1 {
			t.Errorf("%q has %d bytes, of them unsent: %v", f.Path, f.Size, f.Ranges)
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, f.Written.Name))
		if err != nil {
			t.Fatal(err)
		}
		at, n := f.Ranges[0][0], f.Ranges[0][1]
		if !bytes.Equal(got[at:at+n], want.content[at:at+n]) {
			t.Errorf("%s: bytes %v are not what was written", f.Path, f.Ranges)
		}
		if at > want.written[0] || at+n < want.written[0]+want.written[1] || want.exact && f.Ranges[0] != want.written {
			t.Errorf("%s: %v were not sent, want %v", f.Path, f.Ranges, want.written)
		}
	}
}
