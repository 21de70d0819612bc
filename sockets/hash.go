package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"understudy/addr"
	"understudy/kernel"
)

// secrets are the random keys of the table of connections. Where the kernel does not
// tell them, only the stored hash of a connection is held against its chain.
type secrets struct {
	v4, v6, v6Remote uint32
	known            bool
}

// readSecrets looks for the keys: in struct net_hotdata since 6.9 (commits
// 6e0735723ab4, 5af674bb90a0 and df51b8456415), before in variables of functions,
// which compilers number.
func readSecrets(k *kernel.Kernel) secrets {
	var s secrets
	for _, key := range []struct {
		into   *uint32
		member string
		local  string
	}{
		{&s.v4, "inet_ehash_secret", "inet_ehash_secret"},
		{&s.v6, "inet6_ehash_secret", "inet6_ehash_secret"},
		{&s.v6Remote, "tcp_ipv6_hash_secret", "ipv6_hash_secret"},
	} {
		at, err := hotData(k, key.member)
		if err != nil {
			at, err = numbered(k, key.local)
		}
		if err == nil {
			*key.into, err = k.U32(at)
		}
		if err != nil {
			return secrets{}
		}
	}
	s.known = true
	return s
}

func hotData(k *kernel.Kernel, member string) (addr.Virt, error) {
	l := k.Types().Layout("net_hotdata")
	f := l.Field(member, 4)
	if err := l.Err(); err != nil {
		return 0, err
	}
	at, err := k.Symbol("net_hotdata")
	return f.In(at), err
}

// maxNumber is the highest number of a variable of a function that is looked for.
const maxNumber = 31

// numbered returns the only variable of a name, which may have a number.
func numbered(k *kernel.Kernel, name string) (addr.Virt, error) {
	found := k.Symbols(name)
	for n := range maxNumber + 1 {
		found = append(found, k.Symbols(fmt.Sprintf("%s.%d", name, n))...)
	}
	if len(found) != 1 {
		return 0, errors.New("it is not there, or several times")
	}
	return found[0], nil
}

// hash returns the hash that the kernel has of a connection (net/ipv4 and net/ipv6,
// inet_ehashfn and inet6_ehashfn). b is its struct sock_common.
func (s *secrets) hash(l *commonLayout, b []byte, mix uint32, v6 bool) uint32 {
	ports := uint32(l.num.Uint(b))<<16 | uint32(l.remotePort.Uint(b))
	if !v6 {
		return hash3(uint32(l.local4.Uint(b)), uint32(l.remote4.Uint(b)), ports, s.v4+mix)
	}
	local, remote := l.local6.Bytes(b), l.remote6.Bytes(b)
	return hash3(binary.LittleEndian.Uint32(local[12:]), hash4(remote, s.v6Remote), ports, s.v6+mix)
}

// hashSeed is JHASH_INITVAL (include/linux/jhash.h).
const hashSeed = 0xdeadbeef

// hash3 hashes three words, and hash4 the four of 16 bytes, by lookup3 of Bob
// Jenkins (public domain; include/linux/jhash.h).
func hash3(a, b, c, key uint32) uint32 {
	key += hashSeed + 3<<2
	return finish(a+key, b+key, c+key)
}

func hash4(w []byte, key uint32) uint32 {
	key += hashSeed + 4<<2
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(w[4*i:]) }
	a, b, c := key+word(0), key+word(1), key+word(2)
	a, c = (a-c)^bits.RotateLeft32(c, 4), c+b
	b, a = (b-a)^bits.RotateLeft32(a, 6), a+c
	c, b = (c-b)^bits.RotateLeft32(b, 8), b+a
	a, c = (a-c)^bits.RotateLeft32(c, 16), c+b
	b, a = (b-a)^bits.RotateLeft32(a, 19), a+c
	c, b = (c-b)^bits.RotateLeft32(b, 4), b+a
	return finish(a+word(3), b, c)
}

func finish(a, b, c uint32) uint32 {
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	return (c ^ b) - bits.RotateLeft32(b, 24)
}
