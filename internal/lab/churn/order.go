// Package churn makes transactions for tests: a guest changes a file system in
// all the ways that change its metadata, and dies with the changes in the
// running transaction of the journal. Nothing but its size makes that commit; one
// that was to be whole, and was committed in part, is made again.
package churn

// OrderPath is where the guest finds its Order.
const OrderPath = "/order.json"

// Disk is the serial number of the guest's disk.
const Disk = "churn"

// Lines that the guest prints on its console, each followed by the reason.
const (
	Failed  = "churn: failed: "
	NotHeld = "churn: not held: " // the image is to be made again
)

// Order tells the guest what to do.
type Order struct {
	Type, Options string // for mount(2), without those of package hold
	Seed          uint64
	Ops           int // of each thread
	Threads       int
	// After is how many operations of all threads the guest dies after, whatever it is
	// doing; 0 is when it is done.
	After int
}
