package agent

// cloneCounting starts a thread that counts as t says, and returns its thread ID, or a
// negative errno.
//
//go:noescape
func cloneCounting(t *counting) int
