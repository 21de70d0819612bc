package workload

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// truthOf is the record of a file of the given content.
func truthOf(path string, content []byte) Truth {
	t := Truth{Path: path, Mode: 0o644}
	s := newSummer()
	s.add(content)
	s.finish(&t)
	return t
}

func TestDigest(t *testing.T) {
	dir := t.TempDir()
	content := map[string][]byte{
		"empty": nil, "a/one": {7}, "a/page": bytes.Repeat([]byte{1}, PageSize), "b/c/odd": bytes.Repeat([]byte{2}, 3*PageSize+1),
		"big": bytes.Repeat([]byte("0123456"), 100_000),
	}
	var want []Truth
	for path, data := range content {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, data, 0o644); err != nil {
			t.Fatal(err)
		}
		want = append(want, truthOf(path, data))
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	got := collect(t, dir)
	if !slices.IsSortedFunc(got, func(a, b Truth) int { return strings.Compare(a.Path, b.Path) }) {
		t.Error("not in order")
	}
	r := Compare(want, got)
	if len(r.Findings) != 1 || r.Findings[0] != (Finding{Path: "link", Fault: Extra}) {
		t.Errorf("%+v", r)
	}
	for range Digest(dir) {
		break // must not panic
	}
}

func TestDigestReportsUnreadable(t *testing.T) {
	for _, err := range Digest(filepath.Join(t.TempDir(), "none")) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing tree: %v", err)
		}
		return
	}
	t.Error("missing tree: nothing yielded")
}

func TestCompare(t *testing.T) {
	full := bytes.Repeat([]byte{1}, 2*PageSize+100)
	want := truthOf("f", full)
	want.Synced = true
	change := func(at ...int) Truth {
		c := slices.Clone(full)
		for _, i := range at {
			c[i]++
		}
		return truthOf("f", c)
	}
	forged := want
	forged.SHA256[0]++
	mode := want
	mode.Mode = 0o600
	tests := []struct {
		name                   string
		got                    []Truth
		wrong, missing, beyond int64
		fault                  Fault
	}{
		{name: "same", got: []Truth{truthOf("f", full)}},
		{"first page", []Truth{change(0, 5)}, PageSize, 0, 0, ContentDiffers},
		{"last page", []Truth{change(2*PageSize + 99)}, 100, 0, 0, ContentDiffers},
		{"all pages", []Truth{change(0, PageSize, 2*PageSize)}, 2*PageSize + 100, 0, 0, ContentDiffers},
		{"short by a page", []Truth{truthOf("f", full[:2*PageSize])}, 100, 100, 0, ContentDiffers},
		{"cut in a page", []Truth{truthOf("f", full[:PageSize+1])}, PageSize + 100, 100, 0, ContentDiffers},
		{"too long", []Truth{truthOf("f", append(slices.Clone(full), make([]byte, PageSize)...))}, 100 + 100, 0, 100, ContentDiffers},
		{"missing", nil, 2*PageSize + 100, 2*PageSize + 100, 0, Missing},
		{"only the SHA", []Truth{forged}, 2*PageSize + 100, 0, 0, ContentDiffers},
		{"mode", []Truth{mode}, 0, 0, 0, ModeDiffers},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Compare([]Truth{want}, tt.got)
			if r.BytesWrong != tt.wrong || r.BytesMissing != tt.missing || r.BytesBeyond != tt.beyond {
				t.Errorf("%+v", r)
			}
			if r.Exact() != (tt.fault == "") {
				t.Fatalf("exact: %+v", r)
			}
			if tt.fault != "" && (r.Findings[0].Fault != tt.fault || r.SyncedWrong != 1 || r.FilesWrong+r.FilesMissing != 1) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// encode returns the records as they go over the line.
func encode(t testing.TB, records []Truth) []byte {
	t.Helper()
	var b bytes.Buffer
	e := NewEncoder(&b)
	for _, r := range records {
		if err := e.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sample() []Truth {
	odd := truthOf("no\xffutf8\n", []byte("x"))
	odd.Mode, odd.Synced = 0o4755|fs.ModeSymlink, true
	return []Truth{truthOf("", nil), odd, truthOf("dir/ü \u2028<&>", make([]byte, 10*PageSize+1)), truthOf("page", make([]byte, PageSize))}
}

func TestEncoding(t *testing.T) {
	line := encode(t, sample())
	for name, stream := range map[string][]byte{
		"as written": line, "from a terminal": bytes.ReplaceAll(line, []byte("\n"), []byte("\r\n")),
	} {
		r := bufio.NewReader(bytes.NewReader(append(slices.Clone(stream), "next"...)))
		got, err := ReadAll(r)
		if err != nil || !reflect.DeepEqual(got, sample()) {
			t.Errorf("%s: %v, %+v", name, err, got)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "next" {
			t.Errorf("%s: left over: %q", name, rest)
		}
	}
}

func TestDecoderRefusesDamage(t *testing.T) {
	line := encode(t, sample())
	lines := bytes.SplitAfter(line, []byte("\n"))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, tt := range map[string]struct {
		stream []byte
		want   error
	}{
		"cut":              {line[:len(line)-10], io.ErrUnexpectedEOF},
		"without its end":  {join(lines[:4]...), io.ErrUnexpectedEOF},
		"nothing":          {nil, io.ErrUnexpectedEOF},
		"a record less":    {join(lines[0], lines[2], lines[3], lines[4]), ErrDamaged},
		"other order":      {join(lines[1], lines[0], lines[2], lines[3], lines[4]), ErrDamaged},
		"other mode":       {bytes.Replace(line, []byte(`"m":420`), []byte(`"m":421`), 1), ErrDamaged},
		"kernel message":   {join(lines[0], []byte("[ 1.0] hello\n"), lines[1]), ErrBadRecord},
		"negative size":    {[]byte(`{"p":"x","n":-1,"m":0}` + "\n"), ErrBadRecord},
		"vast size":        {[]byte(`{"p":"x","n":9223372036854775807,"m":0}` + "\n"), ErrBadRecord},
		"short hash":       {[]byte(`{"p":"x","n":0,"m":0,"h":"AAAA"}` + "\n"), ErrBadRecord},
		"odd checksums":    {[]byte(`{"p":"x","n":1,"m":0,"c":"AAAAAAA="}` + "\n"), ErrBadRecord},
		"endless line":     {bytes.Repeat([]byte("x"), 2*maxLine), ErrBadRecord},
		"endless checksum": {bytes.Repeat([]byte("\n"), 10), ErrBadRecord},
	} {
		if _, err := ReadAll(bytes.NewReader(tt.stream)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

func TestLargestRecordFitsALine(t *testing.T) {
	want := Truth{Path: strings.Repeat("<", maxPath), Size: maxPages * PageSize, Pages: make([]uint32, maxPages), Mode: 1<<32 - 1}
	got, err := ReadAll(bytes.NewReader(encode(t, []Truth{want})))
	if err != nil || !reflect.DeepEqual(got, []Truth{want}) {
		t.Errorf("%v", err)
	}
}

func TestEncoderRefuses(t *testing.T) {
	for name, r := range map[string]Truth{
		"pages that do not fit": {Path: "x", Size: 1},
		"a vast file":           {Path: "x", Size: 2 << 30, Pages: make([]uint32, 2<<30/PageSize)},
		"a vast path":           {Path: strings.Repeat("x", 5000)},
	} {
		var b bytes.Buffer
		e := NewEncoder(&b)
		if err := e.Encode(r); !errors.Is(err, ErrBadRecord) || b.Len() > 0 {
			t.Errorf("%s: %v, %d bytes written", name, err, b.Len())
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadAll(&b); err != nil || len(got) != 0 {
			t.Errorf("%s: stream after the refusal: %v, %v", name, got, err)
		}
	}
}

// FuzzDecode checks that the decoder never panics, and that whatever records it takes
// come out the same once more after an encoding.
func FuzzDecode(f *testing.F) {
	f.Add(encode(f, sample()))
	f.Add(encode(f, nil))
	f.Add([]byte(`{"p":"x","n":9223372036854775807,"m":0,"c":"AAAA"}` + "\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var took []Truth
		d := NewDecoder(bytes.NewReader(stream))
		for {
			r, err := d.Next()
			if err != nil {
				break
			}
			took = append(took, r)
		}
		again, err := ReadAll(bytes.NewReader(encode(t, took)))
		if err != nil || !reflect.DeepEqual(took, again) {
			t.Errorf("took %+v, then %+v, %v", took, again, err)
		}
	})
}

// FuzzEncode checks that a record of any content comes out as it went in, and of any name that a kernel accepts.
func FuzzEncode(f *testing.F) {
	f.Add("a/b", []byte("content"), uint32(0o644), true)
	f.Add("\xff", make([]byte, 2*PageSize), uint32(1<<31), false)
	f.Fuzz(func(t *testing.T, path string, content []byte, mode uint32, synced bool) {
		if len(path) > maxPath {
			t.Skip("it is refused")
		}
		want := truthOf(path, content)
		want.Mode, want.Synced = fs.FileMode(mode), synced
		got, err := ReadAll(bytes.NewReader(encode(t, []Truth{want})))
		if err != nil || !reflect.DeepEqual(got, []Truth{want}) {
			t.Errorf("%+v came out as %+v, %v", want, got, err)
		}
	})
}
