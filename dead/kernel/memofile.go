package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// memoMagic begins the file of a memo. The first line continues with the digest of
// the code that wrote it and the SHA-256 of the rest, which is JSON.
const memoMagic = "understudy memo"

// maxMemo bounds the size of a memo's file, in bytes. Everything that is ever asked takes about
// 20 KiB.
const maxMemo = 1 << 20

// openMemo reads what is known about this kernel's build. A file that does not
// check out counts as none, and is replaced in the end.
func (k *Kernel) openMemo() error {
	if k.memo.path == "" {
		return nil
	}
	name, err := k.build()
	if err != nil {
		return err
	}
	k.memo.path = filepath.Join(k.memo.path, name)
	if known, err := readMemo(k.memo.path); err == nil {
		k.memo.known = *known
	}
	return nil
}

// maxBuildID bounds a build id, in characters; SHA-1 has 40.
const maxBuildID = 128

// build returns a file name for this build of a kernel: with the build id in the note
// (since 5.9, commit 0935288c6e00), or else with the hash of what uname(2) returns
// without the host name.
func (k *Kernel) build() (string, error) {
	id := k.note.values["BUILD-ID"]
	if id != "" && len(id) <= maxBuildID && strings.Trim(id, "0123456789abcdef") == "" {
		return "build-" + id, nil
	}
	uts, err := k.utsname()
	if err != nil {
		return "", err
	}
	uts = bytes.Clone(uts)
	clear(uts[utsLen : 2*utsLen])
	sum := sha256.Sum256(uts)
	return "uname-" + hex.EncodeToString(sum[:]), nil
}

func readMemo(path string) (*known, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMemo+1))
	if err != nil {
		return nil, err
	}
	return parseMemo(b)
}

// memoHead returns the first line of a memo's file with this body.
func memoHead(body []byte) string {
	return fmt.Sprintf("%s %x %x\n", memoMagic, codeDigest(), sha256.Sum256(body))
}

func parseMemo(b []byte) (*known, error) {
	_, body, ok := bytes.Cut(b, []byte("\n"))
	if !ok || len(b) > maxMemo || !bytes.HasPrefix(b, []byte(memoHead(body))) {
		return nil, errors.New("parse memo: it is damaged, or other code wrote it")
	}
	k := &known{}
	if err := json.Unmarshal(body, k); err != nil {
		return nil, fmt.Errorf("parse memo: %w", err)
	}
	for _, b := range k.Answers {
		if b == nil {
			return nil, errors.New("parse memo: an entry of its answers is null")
		}
	}
	return k, nil
}

// Keep writes down what was learned about this build of the kernel, in the
// directory that KeepIn named, for the next Find. It does nothing if there is
// nothing new.
func (k *Kernel) Keep() error {
	m := k.memo
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.path == "" || !m.grown() {
		return nil
	}
	m.known.Release = k.Release
	body, err := json.Marshal(m.known)
	if err == nil {
		err = replaceFile(m.path, append([]byte(memoHead(body)), body...))
	}
	if err != nil {
		return fmt.Errorf("keep what was learned about the kernel: %w", err)
	}
	return nil
}

// grown reports whether any set has new answers, and marks them as old.
func (m *memo) grown() bool {
	grown := false
	for _, b := range m.known.Answers {
		b.mu.Lock()
		grown, b.grown = grown || b.grown, false
		b.mu.Unlock()
	}
	return grown
}

// replaceFile replaces a file as a whole. It need not be durable: a torn
// file would be ignored.
func replaceFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
