package inventory_test

import (
	"fmt"
	"log"

	"understudy.dev/understudy/dead/inventory"
)

// The unsaved files of a crash, as in the README of this library.
func Example() {
	image, err := inventory.Open("crash.dump")
	if err != nil {
		log.Fatal(err)
	}
	defer image.Close()
	systems, _, err := image.FileSystems()
	for _, fs := range systems {
		for _, f := range fs.Find(inventory.Query{}).Files {
			fmt.Printf("%v\t%d of %d bytes unsaved\t%q\n", fs.Super.UUID, f.UnsavedBytes(), f.Size, f.Label())
		}
	}
	if err != nil {
		log.Fatal(err) // what could not be read
	}
}
