package pair

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"k": "kernel", "i": "cpio", "d.img": "raw", "empty": "", "q.img": "QFI\xfb"} {
		os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)
	}
	for link, to := range map[string]string{"link.img": "d.img", "e.img": "e"} {
		os.Symlink(to, filepath.Join(dir, link))
	}
	os.WriteFile(filepath.Join(dir, "e"), []byte("raw"), 0o600)
	enough := Machine{CPUs: []int{0, 1}, MemAvailable: 128<<20*2 + reserve + 2*overhead}
	valid := smallest + "disks: [{name: d, image: d.img, mount: /srv}]\n"
	tests := []struct {
		name     string
		old, new string
		machine  Machine
		want     string
	}{
		{"fits", "", "", enough, ""},
		{"one CPU for both", `cpus: "1"`, `cpus: "0"`, Machine{CPUs: []int{0}, MemAvailable: enough.MemAvailable}, ""},
		{"no CPU", "", "", Machine{CPUs: []int{0, 2, 3}, MemAvailable: enough.MemAvailable},
			"pair.yaml:4: partitions.b.cpus: this machine lets us use CPUs 0,2-3, and not 1; choose among those"},
		{"no memory", "", "", Machine{CPUs: enough.CPUs, MemAvailable: enough.MemAvailable - 1},
			"pair.yaml:4: partitions.b.memory: 128MiB and 128MiB for the partitions, with 256MiB for QEMU and 256MiB for this machine, " +
				"are 768MiB, and 767MiB are available; give the partitions less, or stop something"},
		{"no kernel", "kernel: k, initramfs: i}\ndisks", "kernel: none, initramfs: i}\ndisks", enough,
			"pair.yaml:4: partitions.b.kernel: stat DIR/none: no such file or directory; correct the path, or make the file"},
		{"empty initramfs", "initramfs: i}\ndisks", "initramfs: empty}\ndisks", enough,
			"pair.yaml:4: partitions.b.initramfs: DIR/empty is empty or no regular file; correct the path"},
		{"no image", "d.img", "none", enough,
			"pair.yaml:5: disks.0.image: stat DIR/none: no such file or directory; correct the path, or make the image"},
		{"one image by two names", "/srv}", "/srv}, {name: e, image: link.img, mount: /b}", enough,
			"pair.yaml:5: disks.1.image: DIR/link.img is the same file as DIR/d.img (line 5); give each its own"},
		{"two images, one by a link", "/srv}", "/srv}, {name: e, image: e.img, mount: /b}", enough, ""},
		{"no hook", "/srv}]", "/srv}]\nhooks: [{command: [DIR/none]}]", enough,
			"pair.yaml:6: hooks.0.command: DIR/none: no such file or directory; correct the path, or install the program"},
		{"image is directory", "d.img", ".", enough,
			"pair.yaml:5: disks.0.image: DIR is neither a regular file nor a block device, or empty; name a raw image or a block device"},
		{"image is terminal", "d.img", "/dev/null", enough,
			"pair.yaml:5: disks.0.image: /dev/null is neither a regular file nor a block device, or empty; name a raw image or a block device"},
		{"image is qcow2", "d.img", "q.img", enough,
			"pair.yaml:5: disks.0.image: DIR/q.img is in qcow2 format, and only raw images and block devices can be taken over; " +
				"convert it: qemu-img convert -O raw DIR/q.img NEW"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := parse("pair.yaml", dir, []byte(strings.Replace(valid, tt.old, strings.ReplaceAll(tt.new, "DIR", dir), 1)))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := p.Check(tt.machine); err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			}
			if got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func TestCheckBridges(t *testing.T) {
	p, err := parse("pair.yaml", "/", []byte(smallest+"nics: [{name: n, mac: '52:54:00:00:00:02', address: 10.0.0.2/24, bridge: br7}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.CheckBridges(map[string]time.Duration{"br0": time.Second, "br7": 0}); err != nil {
		t.Error(err)
	}
	for want, bridges := range map[string]map[string]time.Duration{
		"this machine has no bridge br7 (bridges: none); make it: ip link add br7 type bridge; ip link set br7 up":     nil,
		"this machine has no bridge br7 (bridges: br0, br1); make it: ip link add br7 type bridge; ip link set br7 up": {"br1": 0, "br0": 0},
		"bridge br7 has the spanning tree protocol on: the service would not be reached for 30s after each takeover; " +
			"turn that off: ip link set br7 type bridge stp_state 0; of NetworkManager's: nmcli connection modify br7 bridge.stp no, and nmcli connection up br7": {"br7": 30 * time.Second},
	} {
		if err := p.CheckBridges(bridges); err == nil || err.Error() != "pair.yaml:5: nics.0.bridge: "+want {
			t.Errorf("%v", err)
		}
	}
}

func TestReadMachine(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	base := fstest.MapFS{
		"sys/devices/system/cpu/online": file("0-3\n"),
		"proc/thread-self/status":       file("Name:\tx\nCpus_allowed:\td\nCpus_allowed_list:\t0,2-3\n"),
		"proc/meminfo":                  file("MemTotal: 9000000 kB\nMemAvailable:    2097152 kB\n"),
	}
	tests := []struct {
		name  string
		extra fstest.MapFS
		want  uint64
	}{
		{"no groups", nil, 2 << 30},
		{"v2 unlimited", fstest.MapFS{"proc/self/cgroup": file("0::/a\n"), "sys/fs/cgroup/a/memory.max": file("max\n"),
			"sys/fs/cgroup/a/memory.current": file("5\n")}, 2 << 30},
		{"v2 parent", fstest.MapFS{"proc/self/cgroup": file("0::/a/b\n"), "sys/fs/cgroup/a/memory.max": file("1073741824\n"),
			"sys/fs/cgroup/a/memory.current": file("24\n"), "sys/fs/cgroup/a/b/memory.max": file("max\n")}, 1<<30 - 24},
		{"v2 container", fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("1000\n"),
			"sys/fs/cgroup/memory.current": file("2000\n")}, 0},
		{"v1", fstest.MapFS{"proc/self/cgroup": file("9:cpu,cpuacct:/z\n8:memory:/host/path\n0::/\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes": file("1048576\n"),
			"sys/fs/cgroup/memory/memory.usage_in_bytes": file("1\n")}, 1<<20 - 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := fstest.MapFS{}
			for _, layer := range []fstest.MapFS{base, tt.extra} {
				for name, f := range layer {
					root[name] = f
				}
			}
			got, err := readMachine(root)
			if err != nil {
				t.Fatal(err)
			}
			if want := (Machine{CPUs: []int{0, 2, 3}, MemAvailable: tt.want}); !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	if _, err := readMachine(fstest.MapFS{}); err == nil {
		t.Error("no error without /proc")
	}
}

func TestThisMachine(t *testing.T) {
	m, err := ThisMachine()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.CPUs) == 0 || m.MemAvailable == 0 {
		t.Errorf("nothing here: %+v", m)
	}
}
