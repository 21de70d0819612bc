package nfsbench

import "encoding/binary"

// RecordBytes is the unit that files are written in and lost bytes are counted in.
const RecordBytes = 4096

// record fills b with the content of record i of a file: words that follow from the file's
// seed, the record's number and the place in it, and differ from those of any other.
func record(b []byte, seed uint64, i int) {
	x := mix(seed ^ mix(uint64(i)+1))
	for at := 0; at < len(b); at += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], mix(x+uint64(at)))
		copy(b[at:], word[:])
	}
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
