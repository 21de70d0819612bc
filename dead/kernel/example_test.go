package kernel_test

import (
	"fmt"
	"log"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
)

// Which kernel is in a crash dump, and what its "struct file_system_type" looks like.
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
	fmt.Println(k.Release)
	l := k.Types().Layout("file_system_type")
	name, next := l.Field("name", 8), l.Field("next", 8)
	if l.Err() != nil {
		log.Fatal(l.Err())
	}
	// The list that register_filesystem keeps (fs/filesystems.c). A damaged one may never end.
	head, err := k.Symbol("file_systems")
	if err != nil {
		log.Fatal(err)
	}
	at, err := k.Pointer(head)
	if err != nil {
		log.Fatal(err)
	}
	for n := 0; at != 0 && n < 1000; n++ {
		text, err := k.Pointer(name.In(at))
		if err != nil {
			log.Fatal(err)
		}
		typeName, err := k.CString(text, 64)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(typeName)
		if at, err = k.Pointer(next.In(at)); err != nil {
			log.Fatal(err)
		}
	}
}
