package liveness

// Causes are all that a Verdict may have, for those who count them.
var Causes = []Cause{DyingMessage, PanicState, Silence, ProcessGone, StuckCPU, StuckScheduler, StuckDisk, Degraded}
