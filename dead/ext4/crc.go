package ext4

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC32C extends the checksum sum over b as the kernel's crc32c does
// (lib/libcrc32c.c), which inverts neither the initial value nor the result.
func CRC32C(sum uint32, b []byte) uint32 { return ^crc32.Update(^sum, castagnoli, b) }

// crc32cNumber extends a checksum over the 4 bytes of n, least significant first.
func crc32cNumber(sum, n uint32) uint32 {
	sum ^= n
	for range 4 {
		sum = castagnoli[byte(sum)] ^ sum>>8
	}
	return sum
}

// crc32cZeros extends a checksum over n zero bytes.
func crc32cZeros(sum uint32, n int) uint32 {
	for range n {
		sum = castagnoli[byte(sum)] ^ sum>>8
	}
	return sum
}

// crc16 extends a checksum as lib/crc16.c does: polynomial 0x8005, least significant bit first.
func crc16(sum uint16, b []byte) uint16 {
	for _, c := range b {
		sum ^= uint16(c)
		for range 8 {
			sum = sum>>1 ^ 0xa001*(sum&1)
		}
	}
	return sum
}
