// Package churn makes transactions for tests: a guest changes a file system in all the
// ways that change its metadata, and dies with the changes in the running transaction of
// the journal. Only its size can make that transaction commit. Where all changes should
// be in it but some were committed, the image is made again.
package churn

// OrderPath is where the guest finds its Order.
const OrderPath = "/order.json"

// Disk is the serial number of the guest's disk.
const Disk = "churn"

// Lines that the guest prints on its console, each followed by the reason.
const (
	Failed  = "churn: failed: "
	NotHeld = "churn: not held: " // the image has to be made again
)

// Order tells the guest what to do.
type Order struct {
	Type, Options string // for mount(2), without those of package hold
	Seed          uint64
	Ops           int // of each thread
	Threads       int
	// After is the number of operations, of all threads together, after which the guest
	// dies, whatever it is doing; 0 means when all are done.
	After int
}
