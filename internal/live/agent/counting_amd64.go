package agent

// cloneCounting starts a thread that counts as t says, and returns its number, or less than
// zero: an errno.
//
//go:noescape
func cloneCounting(t *counting) int
