package foreign

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFlash(t *testing.T) {
	for name, c := range map[string]struct {
		args string
		want []string
	}{
		"none":    {"-drive file=/a.img,if=virtio -machine q35", nil},
		"pflash":  {"-pflash /vars.fd", []string{"/vars.fd"}},
		"drive":   {"-drive if=pflash,format=raw,readonly=on,file=/code.fd --drive file=/a,,b.fd,if=pflash,unit=1 -drive file=/pflash.qcow2", []string{"/code.fd", "/a,b.fd"}},
		"libvirt": {`-machine pc-q35-9.0,usb=off,pflash0=libvirt-pflash0-format,pflash1=libvirt-pflash1-format -blockdev {"driver":"file","filename":"/code.fd","node-name":"libvirt-pflash0-storage"} -blockdev {"node-name":"libvirt-pflash0-format","driver":"raw","file":"libvirt-pflash0-storage"} -blockdev {"driver":"file","filename":"/vars.qcow2","node-name":"libvirt-pflash1-storage"} -blockdev {"node-name":"libvirt-pflash1-format","driver":"qcow2","file":"libvirt-pflash1-storage"} -blockdev {"driver":"file","filename":"/a.img","node-name":"libvirt-1-storage"}`, []string{"/code.fd", "/vars.qcow2"}},
		"in place": {
			`-blockdev {"node-name":"vars","driver":"qcow2","file":{"driver":"file","filename":"/vars.qcow2"}} -M q35,pflash1=vars`, []string{"/vars.qcow2"},
		},
		"suboptions":    {"-blockdev driver=qcow2,node-name=v,file.driver=file,file.filename=/v.fd -blockdev driver=file,node-name=s,filename=/c.fd -blockdev driver=raw,node-name=c,file=s -machine pflash0=c,pflash1=v", []string{"/c.fd", "/v.fd"}},
		"a drive by id": {"-drive if=none,id=v,file=/v.fd -machine pflash1=v", []string{"/v.fd"}},
		"a ring":        {`-blockdev {"node-name":"a","file":"b"} -blockdev {"node-name":"b","file":"a"} -machine pflash0=a`, nil},
		"not JSON":      {"-blockdev {x -machine pflash0=x -drive", nil},
	} {
		if got := flash(strings.Fields(c.args)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestRaw: what a command line says is raw, is.
func TestRaw(t *testing.T) {
	for name, c := range map[string]struct {
		args string
		want []string
	}{
		"drive":         {"-drive file=/a.img,format=raw,if=virtio -drive format=qcow2,file=/b -drive file=/c -hda /d", []string{"/a.img"}},
		"libvirt":       {`-blockdev {"driver":"file","filename":"/a.img","node-name":"libvirt-1-storage"} -blockdev {"node-name":"libvirt-1-format","driver":"raw","file":"libvirt-1-storage"} -blockdev {"driver":"file","filename":"/b.qcow2","node-name":"libvirt-2-storage"} -blockdev {"node-name":"libvirt-2-format","driver":"qcow2","file":"libvirt-2-storage"}`, []string{"/a.img"}},
		"no format":     {`-blockdev {"driver":"file","filename":"/a.img","node-name":"libvirt-1-storage"} -blockdev driver=host_device,filename=/dev/x,node-name=d`, []string{"/a.img", "/dev/x"}},
		"in place":      {`-blockdev {"node-name":"a","driver":"raw","file":{"driver":"file","filename":"/a"}} -blockdev driver=raw,node-name=b,file.driver=file,file.filename=/b -blockdev driver=qcow2,node-name=c,file.driver=file,file.filename=/c`, []string{"/a", "/b"}},
		"only a filter": {`-blockdev driver=file,filename=/a,node-name=f -blockdev driver=throttle,file=f,node-name=t`, nil},
	} {
		if got := rawFiles(strings.Fields(c.args)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestFlashIsNoDisk: flash memory is recognized by its file, whatever name the command line has for it.
func TestFlashIsNoDisk(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"vars.fd", "disk.img"} {
		if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("vars.fd", "link"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vars.fd", "link", filepath.Join(dir, "link")} {
		m := &Machine{PID: os.Getpid(), args: []string{"qemu", "-pflash", name}}
		for file, is := range map[string]bool{"vars.fd": false, "disk.img": true} {
			path := filepath.Join(dir, file)
			if d, ok := diskAt(path, path, m.flash()); ok != is {
				t.Errorf("with -pflash %s, %s is a disk: %v, %+v", name, file, ok, d)
			}
		}
	}
}

// FuzzFlash checks that a command line without the word pflash has no flash memory.
func FuzzFlash(f *testing.F) {
	f.Add(`-drive if=pflash,file=/v -blockdev {"node-name":"a","file":{"filename":"/w"}} -machine pflash1=a`)
	f.Add("-blockdev node-name=a,file=a -M pflash0=a")
	f.Fuzz(func(t *testing.T, line string) {
		if files := flash(strings.Fields(line)); len(files) > 0 && !strings.Contains(line, "pflash") {
			t.Errorf("%q in %q", files, line)
		}
	})
}
