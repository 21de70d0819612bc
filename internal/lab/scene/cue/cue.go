// Package cue is what a scene and the program inside its guest tell each other.
package cue

// Where the guest has its script, and the shell for it.
const (
	Script  = "/script"
	Busybox = "/bin/busybox"
)

// Lines that the guest prints: Failed is followed by the reason, Take by a name.
const (
	Failed = "scene: failed: "
	Take   = "scene: take "
)
