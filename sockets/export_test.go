package sockets

import "understudy/kernel"

// KnowsHash reports whether the whole hash of a connection can be checked.
func KnowsHash(k *kernel.Kernel) bool { return readSecrets(k).known }
