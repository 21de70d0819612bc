package sockets_test

import (
	"fmt"
	"log"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/sockets"
)

// The TCP connections that were open when the kernel died.
func Example() {
	memory, err := ram.OpenFile("crash.dump")
	if err != nil {
		log.Fatal(err)
	}
	defer memory.Close()
	k, err := kernel.Find(memory)
	if err != nil {
		log.Fatal(err)
	}
	for c, err := range sockets.Connections(k) {
		if err != nil {
			log.Print(err) // what is refused, and why
			continue
		}
		fmt.Println(c.State, c.Local, c.Remote, c.SndNxt, c.RcvNxt)
	}
}
