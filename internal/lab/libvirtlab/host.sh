# The first process of a host of libvirt's, in new namespaces. $1 has the packages, and $2 is an
# empty directory.
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs none "$2"
for dir in usr etc var; do
	mkdir -p "$2/$dir/new" "$2/$dir/work"
	mount -t overlay -o "lowerdir=$1/$dir:/$dir,upperdir=$2/$dir/new,workdir=$2/$dir/work" none "/$dir"
done
mount -t tmpfs none /run
ip link set lo up
ldconfig
# What the packages' own scripts would do.
echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >>/etc/passwd
echo 'libvirt-qemu:x:64055:' >>/etc/group
mkdir -p /var/log/libvirt/qemu /var/lib/libvirt/qemu /var/lib/libvirt/images
# Everything else is as Debian has it. No cgroups: they are this machine's.
cat >>/etc/libvirt/qemu.conf <<END
user = "libvirt-qemu"
group = "libvirt-qemu"
cgroup_controllers = []
END
virtlogd -d
libvirtd -d
while :; do sleep 1; done # and reap whatever has lost its parent
