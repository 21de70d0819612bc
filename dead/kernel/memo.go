package kernel

import (
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"sync/atomic"
)

// A memo holds the answers to what was asked about the symbols and types of one
// build of a kernel. The answers follow from the bytes of its tables alone, and therefore
// hold for every boot, wherever KASLR put the image. An answer is believed only if the
// bytes in memory have the digest of those that gave it.
type memo struct {
	path string // of its file; empty means that the memo is not kept

	mu    sync.Mutex
	known known
}

// known is what the file of a memo holds.
type known struct {
	Release string `json:"release"` // for people
	// Tables are the addresses of the parts of the symbol table, relative to _stext, if they had
	// to be searched for.
	Tables []uint64 `json:"tables,omitempty"`
	// Answers are by the digest of what they are about: the symbol table, or the
	// BTF of the image or of a module.
	Answers map[digest]*answerSet `json:"answers"`
}

// about returns the answers about some bytes. read says whether there were any: then
// the bytes have been read to their end once, and found valid.
func (m *memo) about(parts ...[]byte) (b *answerSet, read bool) {
	if m == nil || m.path == "" {
		return &answerSet{}, false
	}
	of := digestOf(parts...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known.Answers == nil {
		m.known.Answers = make(map[digest]*answerSet)
	}
	if b = m.known.Answers[of]; b == nil {
		b = &answerSet{}
		m.known.Answers[of] = b
	}
	b.of = of
	return b, len(b.answers) > 0
}

// An answerSet holds answers by question; each is a list of numbers. It is safe for
// concurrent use.
type answerSet struct {
	of digest // what it is about; zero if it is not kept

	mu      sync.Mutex
	answers map[string][]uint64
	grown   bool // there are new answers since it was read from a file
}

// ask answers a question, by calling work if the question is new.
func (b *answerSet) ask(question string, work func() ([]uint64, error)) ([]uint64, error) {
	b.mu.Lock()
	answer, ok := b.answers[question]
	b.mu.Unlock()
	if ok {
		return answer, nil
	}
	answer, err := work()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answers == nil {
		b.answers = make(map[string][]uint64)
	}
	b.answers[question], b.grown = answer, true
	return answer, nil
}

// MarshalJSON implements json.Marshaler.
func (b *answerSet) MarshalJSON() ([]byte, error) {
	b.mu.Lock()
	answers := maps.Clone(b.answers)
	b.mu.Unlock()
	return json.Marshal(answers)
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *answerSet) UnmarshalJSON(raw []byte) error { return json.Unmarshal(raw, &b.answers) }

// digest identifies bytes. Nobody can make other bytes with the same digest: no memory can
// be made up that plants answers about the memory of others.
type digest [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("parse digest: %d characters", len(text))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// digestPiece is how many bytes are hashed at a time, on all CPUs.
const digestPiece = 256 << 10

// digestOf identifies some bytes in parts: by the SHA-256 of the lengths of all
// parts and of the SHA-256 of each of their pieces.
func digestOf(parts ...[]byte) digest {
	var pieces [][]byte
	var sums []byte
	for _, part := range parts {
		sums = binary.LittleEndian.AppendUint64(sums, uint64(len(part)))
		for len(part) > 0 {
			n := min(len(part), digestPiece)
			pieces, part = append(pieces, part[:n]), part[n:]
		}
	}
	lengths := len(sums)
	sums = append(sums, make([]byte, len(pieces)*sha256.Size)...)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(pieces)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(pieces); i = int(next.Add(1)) - 1 {
				sum := sha256.Sum256(pieces[i])
				copy(sums[lengths+i*sha256.Size:], sum[:])
			}
		})
	}
	wg.Wait()
	return sha256.Sum256(sums)
}

// sources is the code that gives the answers: other code may give other answers.
//
//go:embed memo.go memofile.go kallsyms.go symbols.go symbolsearch.go types.go layout.go btfcheck.go
var sources embed.FS

// codeDigest identifies that code.
var codeDigest = sync.OnceValue(func() digest {
	var parts [][]byte
	entries, err := sources.ReadDir(".")
	for _, e := range entries {
		b, failed := sources.ReadFile(e.Name())
		if failed != nil {
			err = failed
		}
		parts = append(parts, []byte(e.Name()), b)
	}
	if err != nil {
		panic(err) // the sources are part of the program
	}
	return digestOf(parts...)
})
