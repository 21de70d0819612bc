// Package churn makes transactions for tests: a guest changes a file system in
// all the ways that change its metadata, and dies with the changes in the
// running transaction of the journal.
package churn

// OrderPath is where the guest finds its Order.
const OrderPath = "/order.json"

// Disk is the serial number of the guest's disk.
const Disk = "churn"

// Order tells the guest what to do.
type Order struct {
	Type, Options string // for mount(2)
	Seed          uint64
	Ops           int // of each thread
	Threads       int
	// Millis is after how many of them the guest dies, whatever it is doing; 0 is
	// when it is done.
	Millis int
}
