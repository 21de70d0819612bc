package partition

import (
	"net"
	"os"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/disk"
)

func spec(devices ...Device) Spec {
	return Spec{
		Name: "left", Dir: "/run/x", CPUs: []int{0, 2}, VCPUs: 3, Memory: 256 << 20,
		Kernel: "/k,1", Initramfs: "/i", Append: "a=1", Accel: TCG, Devices: devices,
	}
}

func has(t *testing.T, s Spec, want string) {
	t.Helper()
	if line := " " + strings.Join(s.command().args, " ") + " "; !strings.Contains(line, " "+want+" ") {
		t.Errorf("command line lacks %q:\n%s", want, line)
	}
}

func TestCommand(t *testing.T) {
	s := spec()
	for _, want := range []string{
		"-S", "-smp 3", "-m size=262144k",
		"-machine q35,memory-backend=ram,usb=off,vmport=off",
		"-object memory-backend-file,id=ram,size=268435456,mem-path=/run/x/left.ram,share=on",
		"-action panic=none,reboot=shutdown", "-device pvpanic-pci", "-device pvpanic",
		"-kernel /k,1", "-initrd /i", "-accel tcg,thread=multi",
	} {
		has(t, s, want)
	}
	if again := spec(); strings.Join(again.command().args, " ") != strings.Join(s.command().args, " ") {
		t.Error("the order of arguments is not stable")
	}
	s.Reboots = true
	has(t, s, "-action panic=none,reboot=reset")
	s.Accel = KVM
	has(t, s, "-accel kvm")
	if strings.Contains(s.kernelCommandLine(), "tsc=") {
		t.Error("a kernel on hardware is told about its clock")
	}
}

func TestDevices(t *testing.T) {
	data := Disk{Name: "data", Image: "/d"}
	has(t, spec(data), "-blockdev driver=file,node-name=image-data,filename=/d,locking=on,discard=unmap")
	has(t, spec(data), "-device virtio-blk-pci,id=disk-data,drive=image-data,serial=data")
	has(t, spec(Disk{Name: "r", Image: "/d", ReadOnly: true}), "-blockdev driver=file,node-name=image-r,filename=/d,locking=off,discard=unmap,read-only=on")
	over := Overlay{Name: "data", File: "/o,1", Backing: Backing{Image: "/d", At: []disk.Stretch{{Off: 512, Len: 1024}}, Extents: "/x"}}
	has(t, spec(over), "-drive if=none,id=image-data,driver=qcow2,discard=unmap,file.driver=file,file.filename=/o,,1,file.locking=on,"+
		"backing.driver=raw,backing.file.driver=file,backing.file.filename=/d,backing.file.locking=off,backing.offset=512,backing.size=1024")
	over.Backing.At = append(over.Backing.At, disk.Stretch{Off: 4096, Len: 512})
	has(t, spec(over), "-drive if=none,id=image-data,driver=qcow2,discard=unmap,file.driver=file,file.filename=/o,,1,file.locking=on,"+
		"backing.driver=vmdk,backing.file.driver=file,backing.file.filename=/x,backing.extents.0.locking=off,backing.extents.1.locking=off")
	vacant := spec(Vacancy{Disk: data, Size: 4096})
	has(t, vacant, "-blockdev driver=null-co,node-name=vacant-data,size=4096,read-zeroes=on")
	has(t, vacant, "-device virtio-blk-pci,id=disk-data,drive=vacant-data,serial=data")

	shared := spec(Memory{Name: "page", Path: "/p", Size: 8192})
	has(t, shared, "-object memory-backend-file,id=memory-page,size=8192,mem-path=/p,share=on")
	has(t, shared, "-device ivshmem-plain,memdev=memory-page")

	tap, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	s := spec(NIC{Name: "lan", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Tap: tap})
	has(t, s, "-netdev tap,id=tap-lan,fd=3")
	if c := s.command(); len(c.files) != 1 {
		t.Errorf("%d files passed on", len(c.files))
	}
}

func TestCommandLineCanBePasted(t *testing.T) {
	s := spec()
	s.Append = "x='1 2'"
	if line := s.CommandLine(); !strings.Contains(line, `x='\''1 2'\'''`) {
		t.Errorf("quoted badly: %s", line)
	}
}

func TestHome(t *testing.T) {
	p := &Process{Spec: spec()}
	for i, want := range []int{0, 2, 0} {
		if got := p.home(i); len(got) != 1 || got[0] != want {
			t.Errorf("virtual CPU %d is at home on %v, want %d", i, got, want)
		}
	}
}
