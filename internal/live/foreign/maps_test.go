package foreign

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// maps is the map of a machine with 256 MiB of anonymous memory, a page behind it that
// cannot be accessed, and something in front of it that is joined to nothing.
const maps = `55a0d2a00000-55a0d2e00000 r-xp 00000000 08:01 1234                       /usr/bin/qemu-system-x86_64
7f1000000000-7f1000021000 rw-p 00000000 00:00 0
7f1000021000-7f1004000000 ---p 00000000 00:00 0
7f1010000000-7f1018000000 rw-p 00000000 00:00 0
7f1018000000-7f1020000000 rw-p 00000000 00:00 0
7f1020000000-7f1020001000 ---p 00000000 00:00 0
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
`

// guarded is memory with a page behind it that cannot be accessed.
func guarded(span string) string {
	_, end, _ := strings.Cut(span, "-")
	return span + " rw-p 00000000 00:00 0\n" + end + "-7fffffff0000 ---p 00000000 00:00 0\n"
}

func TestMachineMemory(t *testing.T) {
	const mib = 1 << 20
	line := func(s string) string { return strings.Replace(maps, "7f1010000000-7f1018000000 rw-p", s, 1) }
	for name, c := range map[string]struct {
		maps       string
		size       int64
		start, end uint64 // 0 if it is refused
		most       int64
	}{
		"two maps of one memory": {maps, 256 * mib, 0x7f1010000000, 0x7f1020000000, 0},
		"something joined before": {
			line("7f100f000000-7f1018000000 rw-p"), 256 * mib, 0x7f1010000000, 0x7f1020000000, 0,
		},
		"a gap in it":             {line("7f1010000000-7f1017fff000 rw-p"), 256 * mib, 0, 0, 0},
		"another size":            {maps, 512 * mib, 0, 0, 0},
		"another without a guard": {maps + "7f2010000000-7f2020000000 rw-p 00000000 00:00 0\n", 256 * mib, 0x7f1010000000, 0x7f1020000000, 0},
		"code":                    {maps + "7f2010000000-7f2020000000 rwxp 00000000 00:00 0\n7f2020000000-7f2020001000 ---p 00000000 00:00 0\n", 256 * mib, 0x7f1010000000, 0x7f1020000000, 0},
		"two of that size":        {maps + "7f2010000000-7f2020000000 rw-p 00000000 00:00 0\n7f2020000000-7f2020001000 ---p 00000000 00:00 0\n", 256 * mib, 0, 0, 0},
		"a file":                  {"7f00-7f01 rw-p 00000000 00:00 0\n10000000-20000000 rw-s 00000000 00:01 77 /memfd:ram (deleted)\n", 256 * mib, 0x10000000, 0x20000000, 0},
		"a file, not aligned":     {"10001000-20001000 rw-s 00000000 00:01 77 /memfd:ram (deleted)\n", 256 * mib, 0x10001000, 0x20001000, 0},
		"the end of a file":       {"10000000-20000000 rw-s 10000000 00:01 77 /dev/shm/ram\n", 256 * mib, 0, 0, 0},
		"two parts, a file":       {"10000000-18000000 rw-s 00000000 00:01 77 /dev/shm/ram\n18000000-20000000 rw-s 08000000 00:01 77 /dev/shm/ram\n", 256 * mib, 0x10000000, 0x20000000, 0},
		"not in order":            {"10000000-18000000 rw-s 08000000 00:01 77 /dev/shm/ram\n18000000-20000000 rw-s 00000000 00:01 77 /dev/shm/ram\n", 256 * mib, 0, 0, 0},
		"two files, a node each":  {"10000000-18000000 rw-s 00000000 00:01 77 /dev/shm/a\n18000000-20000000 rw-s 00000000 00:01 78 /dev/shm/b\n", 256 * mib, 0, 0, 0},
		"room for more, empty":    {maps + guarded("7f2010000000-7f2014000000"), 256 * mib, 0x7f1010000000, 0x7f1020000000, 1024 * mib},
		"a module":                {maps + guarded("7f2010000000-7f2018000000"), 256 * mib, 0, 0, 1024 * mib},
		"a larger one":            {maps + guarded("7f2010000000-7f2030001000"), 256 * mib, 0, 0, 1024 * mib},
		"one that is a file":      {maps + "7f2010000000-7f2018000000 rw-s 00000000 00:01 77 /memfd:module (deleted)\n", 256 * mib, 0, 0, 1024 * mib},
		"a file, and a module":    {"10000000-20000000 rw-s 00000000 00:01 77 /memfd:ram (deleted)\n" + guarded("7f2010000000-7f2018000000"), 256 * mib, 0, 0, 512 * mib},
		"a file without maxmem":   {maps + "7f2010000000-7f2018000000 rw-s 00000000 00:01 77 /dev/shm/ivshmem\n", 256 * mib, 0x7f1010000000, 0x7f1020000000, 0},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := parseMaps(strings.NewReader(c.maps))
			if err != nil {
				t.Fatal(err)
			}
			r, err := machineMemory(all, memory{c.size, c.most})
			if c.end == 0 {
				if !errors.Is(err, errNoMemory) {
					t.Errorf("%x to %x, %v", r.start, r.end, err)
				}
				return
			}
			if err != nil || r.start != c.start || r.end != c.end {
				t.Errorf("%x to %x, %v", r.start, r.end, err)
			}
		})
	}
}

func TestParseMapsRefuses(t *testing.T) {
	for _, bad := range []string{"x", "10-08 rw-p 0 00:00 0", "1000 rw-p 0 00:00 0", "10-20 rw 0 00:00 0", "10-20 rw-p zz 00:00 0", "10000000000000000-2 rw-p 0 00:00 0"} {
		if all, err := parseMaps(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: %v", bad, all)
		}
	}
}

// FuzzMaps checks that the end of the region found is not before its start, and that it has the size asked for.
func FuzzMaps(f *testing.F) {
	f.Add(maps, int64(256<<20), int64(1<<30))
	f.Add("10000000-20000000 rw-s 00000000 00:01 77 /memfd:ram (deleted)\n", int64(1<<28), int64(0))
	f.Fuzz(func(t *testing.T, text string, size, most int64) {
		all, err := parseMaps(strings.NewReader(text))
		if err != nil || size <= 0 {
			return
		}
		r, err := machineMemory(all, memory{size, most})
		if err == nil && (r.end < r.start || r.size() != size) {
			t.Errorf("%x to %x for %d bytes", r.start, r.end, size)
		}
	})
}

func TestMemoryOf(t *testing.T) {
	for line, want := range map[string]memory{
		"":                               {128 << 20, 0},
		"-m 512":                         {512 << 20, 0},
		"-m 512 -m 1G":                   {1 << 30, 0},
		"-m 1.5G":                        {3 << 29, 0},
		"-m 262144k":                     {256 << 20, 0},
		"-m size=1048576k,slots=16":      {1 << 30, 0},
		"-m 2G,slots=4,maxmem=8G":        {2 << 30, 8 << 30},
		"-m slots=4,maxmem=8G,size=4096": {4 << 30, 8 << 30},
		"-m":                             {128 << 20, 0},
		"-machine q35 -m 268435456B -S":  {256 << 20, 0},
		"-m many":                        {},
		"-m -1":                          {},
		"-m 0":                           {},
		"-m 999999999T":                  {},
		"-m NaN":                         {},
		"-m 2G,maxmem=much":              {},
		"-m 2G -m maxmem=4G":             {2 << 30, 4 << 30},
	} {
		got, err := memoryOf(strings.Fields(line))
		if got != want || (err != nil) != (want.size == 0) {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
}

func TestNameOf(t *testing.T) {
	for line, want := range map[string]string{
		"qemu -name guest=web,debug-threads=on -S": "web", "qemu -name db": "db", "qemu": "", "qemu -name": "",
	} {
		if got := nameOf(strings.Fields(line)); got != want {
			t.Errorf("%q: %q", line, got)
		}
	}
}

// sparse records what is written to it.
type sparse struct {
	data []byte
	at   []int64
}

func (s *sparse) WriteAt(b []byte, off int64) (int, error) {
	s.at = append(s.at, off, off+int64(len(b)))
	return copy(s.data[off:], b), nil
}

func TestWriteSparse(t *testing.T) {
	for name, c := range map[string]struct {
		used []int // pages that are not zeros
		size int
		want []int64
	}{
		"nothing":     {nil, 3 * 4096, nil},
		"all":         {[]int{0, 1}, 2 * 4096, []int64{0, 8192}},
		"the middle":  {[]int{1}, 3 * 4096, []int64{4096, 8192}},
		"both ends":   {[]int{0, 2}, 3 * 4096, []int64{0, 4096, 8192, 12288}},
		"half a page": {[]int{1}, 4096 + 2048, []int64{4096, 6144}},
	} {
		b := make([]byte, c.size)
		for _, p := range c.used {
			b[min(p*4096+1000, c.size-1)] = 1
		}
		to := &sparse{data: make([]byte, c.size)}
		if err := writeSparse(to, b, 0); err != nil || !slices.Equal(to.at, c.want) || !slices.Equal(to.data, b) {
			t.Errorf("%s: written %v, %v", name, to.at, err)
		}
	}
}
