// Package order is what the maker of dirty journals and the program inside the guest tell
// each other.
package order

// Path is where the guest finds its Order, as JSON.
const Path = "/order.json"

// StepsEvery is after how many operations in each file system the guest prints Steps.
const StepsEvery = 10

// Lines that the guest prints on its console. Begun is the first; Failed is followed by
// the reason, Steps by how many operations were done in each file system, Mounted by the
// number of an image and the result of mount(2) for it.
const (
	Begun   = "dirtylog: begun"
	Steps   = "dirtylog: steps "
	Failed  = "dirtylog: failed: "
	Mounted = "dirtylog: image "
	Done    = "dirtylog: done"
)

// Order is what the guest has to do: work in file systems until it is killed, or mount
// images and power off.
type Order struct {
	Seed   uint64
	Work   []FileSystem
	Images []Image
}

// FileSystem is a file system on its own disk.
type FileSystem struct {
	Serial  string // of the disk
	Type    string // for mount(2)
	Options string // likewise
	Fsyncs  bool   // much of the work is fsync(2)
}

// Disk is the serial number of the disk that all images are on, one after the
// other.
const Disk = "images"

// Image is a piece of the disk that all images are on.
type Image struct {
	Offset, Size uint64 // in bytes
	Type         string // for mount(2)
	Options      string // likewise
}
