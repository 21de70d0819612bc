package guest

import (
	"io/fs"
	"os"
	"path/filepath"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/initramfs"
)

// Modules and programs of NFS, by role. Modules that a kernel has built in, or
// that others depend on, need not be listed.
var (
	nfsServerModules  = []string{"nfsd"}
	nfsClientModules  = []string{"nfs", "nfsv3", "nfsv4"}
	nfsServerPrograms = []string{"rpcbind", "rpc.mountd", "exportfs", "rpc.statd", "sm-notify"}
	nfsClientPrograms = []string{"rpcbind", "mount.nfs", "rpc.statd", "sm-notify"}
)

// nfsFiles are the files that the libraries of NFS's programs read: transports
// (netconfig(5)), names of ports and protocols, and the users that the programs become.
var nfsFiles = []initramfs.File{
	initramfs.Text("/etc/netconfig", `udp        tpi_clts      v     inet     udp     -       -
tcp        tpi_cots_ord  v     inet     tcp     -       -
udp6       tpi_clts      v     inet6    udp     -       -
tcp6       tpi_cots_ord  v     inet6    tcp     -       -
local      tpi_cots_ord  -     loopback -       -       -
`, 0o644),
	initramfs.Text("/etc/services", "sunrpc 111/tcp portmapper\nsunrpc 111/udp portmapper\nnfs 2049/tcp\nnfs 2049/udp\n", 0o644),
	initramfs.Text("/etc/protocols", "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n", 0o644),
	initramfs.Text("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n_rpc:x:101:65534::/run/rpcbind:/bin/false\nstatd:x:102:65534::/var/lib/nfs:/bin/false\n", 0o644),
	initramfs.Text("/etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644),
	initramfs.Text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nnetgroup: files\nservices: files\nprotocols: files\n", 0o644),
	initramfs.Text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644),
	initramfs.Link("/var/run", "/run"),
}

// nfsContent is what NFS needs in a guest's image.
func nfsContent(server, client bool) (modules []string, files []initramfs.File, err error) {
	if !server && !client {
		return nil, nil, nil
	}
	root := "" // this machine, if there is no cache: a system service has no home directory
	if cache, err := dirs.Cache(); err == nil {
		root = filepath.Join(cache, "nfs")
	}
	var names []string
	if server {
		modules, names = append(modules, nfsServerModules...), append(names, nfsServerPrograms...)
	}
	if client {
		modules, names = append(modules, nfsClientModules...), append(names, nfsClientPrograms...)
	}
	var paths []string
	for _, name := range names {
		at, err := findProgram(root, name)
		if err != nil {
			return nil, nil, err
		}
		paths = append(paths, at)
	}
	files, err = initramfs.Programs(root, paths...)
	return modules, append(files, nfsFiles...), err
}

// findProgram is the path of a system program below root or of this machine.
func findProgram(root, name string) (string, error) {
	for _, top := range []string{root, "/"} {
		for _, dir := range []string{"/usr/sbin", "/sbin"} {
			if st, err := os.Stat(filepath.Join(top, dir, name)); err == nil && st.Mode().IsRegular() {
				return filepath.Join(dir, name), nil
			}
		}
	}
	return "", hint.New("add program "+name, fs.ErrNotExist, "Run scripts/setup.sh, which fetches Debian's, or install nfs-kernel-server, nfs-common and rpcbind.")
}
