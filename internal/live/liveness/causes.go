package liveness

// Causes are all the causes that a Verdict may have, for code that counts them.
var Causes = []Cause{DyingMessage, PanicState, Silence, ProcessGone, StuckCPU, StuckScheduler, StuckDisk, Degraded}
