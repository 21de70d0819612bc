package workload

// Fault is what is wrong with a file.
type Fault string

// The faults, the graver ones last. A file has one fault, the gravest.
const (
	ModeDiffers    Fault = "mode"    // the content is right
	ContentDiffers Fault = "content" // the content or the size is wrong
	Missing        Fault = "missing"
	Extra          Fault = "extra" // there is no such file in the truth
)

// Finding is a file that is not as it should be.
type Finding struct {
	Path   string `json:"path"`
	Fault  Fault  `json:"fault"`
	Synced bool   `json:"synced"` // it was durable before the crash
	Bytes  int64  `json:"bytes"`  // as in Result.BytesWrong
}

// Result is the outcome of a comparison. BytesWrong counts whole pages (the last one up to the file's end): those
// that differ, those that are missing, and those beyond the end that the file should have. Extra files count for none.
type Result struct {
	Files        int       `json:"files"`         // compared: all of the truth
	FilesWrong   int       `json:"files_wrong"`   // there, but of other content, size or mode
	FilesMissing int       `json:"files_missing"` // not there at all
	FilesExtra   int       `json:"files_extra"`   // there, but not in the truth
	SyncedWrong  int       `json:"synced_wrong"`  // of those wrong or missing, how many were durable before the crash
	BytesWrong   int64     `json:"bytes_wrong"`
	BytesMissing int64     `json:"bytes_missing"` // of those, in pages or files that are not there
	BytesBeyond  int64     `json:"bytes_beyond"`  // of those, beyond the right end
	Findings     []Finding `json:"findings,omitempty"`
}

// Exact reports whether every file is there as it should be, and no other.
func (r Result) Exact() bool { return len(r.Findings) == 0 }

// Compare judges what was found by what should be there. SHA-256 and size decide whether a file is right; the page
// checksums say how much of it is wrong, and if they find nothing the whole file is.
func Compare(want, got []Truth) Result {
	found := make(map[string]Truth, len(got))
	for _, t := range got {
		found[t.Path] = t
	}
	r := Result{Files: len(want)}
	wanted := make(map[string]bool, len(want))
	for _, w := range want {
		wanted[w.Path] = true
		g, ok := found[w.Path]
		r.judge(w, g, ok)
	}
	for _, g := range got {
		if !wanted[g.Path] {
			r.FilesExtra++
			r.Findings = append(r.Findings, Finding{Path: g.Path, Fault: Extra})
		}
	}
	return r
}

// judge compares one file; there says whether it was found.
func (r *Result) judge(want, got Truth, there bool) {
	f := Finding{Path: want.Path, Synced: want.Synced}
	switch {
	case !there:
		f.Fault, f.Bytes = Missing, want.Size
		r.FilesMissing++
		r.BytesMissing += want.Size
	case got.Size != want.Size || got.SHA256 != want.SHA256:
		f.Fault = ContentDiffers
		missing, differ, beyond := comparePages(want, got)
		f.Bytes = missing + differ + beyond
		if f.Bytes == 0 {
			f.Bytes = max(want.Size, got.Size)
		}
		r.BytesMissing += missing
		r.BytesBeyond += beyond
		r.FilesWrong++
	case got.Mode != want.Mode:
		f.Fault = ModeDiffers
		r.FilesWrong++
	default:
		return
	}
	r.BytesWrong += f.Bytes
	if want.Synced {
		r.SyncedWrong++
	}
	r.Findings = append(r.Findings, f)
}

// comparePages counts the bytes of the pages that are wrong.
func comparePages(want, got Truth) (missing, differ, beyond int64) {
	both := min(len(want.Pages), len(got.Pages))
	for i := range both {
		if want.Pages[i] != got.Pages[i] {
			differ += pageLen(want, i)
		}
	}
	for i := range want.Pages[both:] {
		missing += pageLen(want, both+i)
	}
	for i := range got.Pages[both:] {
		beyond += pageLen(got, both+i)
	}
	return missing, differ, beyond
}

// pageLen is how many bytes of page i the file has.
func pageLen(t Truth, i int) int64 {
	return min(PageSize, t.Size-int64(i)*PageSize)
}
