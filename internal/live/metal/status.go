package metal

// Offsets into the status page. Each word has one writer.
const (
	statusReveal = 0x00 // 32 bits, read by the understudy's DSDT: 0 hides PCI, 1 reveals it
	statusState  = 0x08 // 64 bits, by the understudy: State
	statusBeat   = 0x10 // 64 bits, by the understudy: its counter
	statusOrder  = 0x40 // 64 bits, by the active side: orderStop
	statusClock  = 0x48 // 64 bits, by the active side: its time, ns since 1970
)

// State is how far an understudy has come.
type State uint64

// The states of an understudy.
const (
	Starting  State = iota // its kernel boots
	Booted                 // its program runs
	Protected              // it knows the active kernel, and watches it
	TakingOver
	Active  // it serves
	Stopped // as ordered, or never started
	Failed  // see its log
)

func (s State) String() string {
	if names := []string{"starting", "booted", "protected", "taking over", "active", "stopped", "failed"}; s < State(len(names)) {
		return names[s]
	}
	return "unknown"
}

// orderStop orders the understudy not to take over any more.
const orderStop = 1
