package jbd2_test

import (
	"fmt"
	"log"
	"os"

	"understudy.dev/understudy/dead/jbd2"
)

// What a recovery of an ext4 image would do. The image is not written to: all writes go
// to a recording.
func Example() {
	image, err := os.Open("disk.img")
	if err != nil {
		log.Fatal(err)
	}
	defer image.Close()
	disk := jbd2.NewRecording(image)
	l, err := jbd2.Open(disk)
	if err != nil {
		log.Fatal(err)
	}
	scan, err := l.Scan()
	if err != nil {
		log.Fatal(err)
	}
	for _, t := range scan.Transactions {
		fmt.Printf("transaction %d: %d blocks, %d revoked\n", t.Sequence, len(t.Blocks), len(t.Revokes))
	}
	stats, err := l.Replay()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d blocks written\n", stats.Blocks)
}
