package ext4

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC32C goes on with a checksum over b as the kernel's crc32c does
// (lib/libcrc32c.c), which inverts neither what it starts from nor what it ends
// with.
func CRC32C(sum uint32, b []byte) uint32 { return ^crc32.Update(^sum, castagnoli, b) }

// crc16 is that of lib/crc16.c: polynomial 0x8005, least significant bit first.
func crc16(sum uint16, b []byte) uint16 {
	for _, c := range b {
		sum ^= uint16(c)
		for range 8 {
			sum = sum>>1 ^ 0xa001*(sum&1)
		}
	}
	return sum
}
