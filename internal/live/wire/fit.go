package wire

import "encoding/json"

// maxList bounds a list of what became of files, one by one, in a message, in bytes: an answer has
// at most two of them, and room for more.
const maxList = 6 << 20

// Fit returns the beginning of a list that a message has room for, and how many more there are.
func Fit[T any](list []T) (first []T, more int) {
	size := 0
	for i, v := range list {
		b, err := json.Marshal(v)
		if size += len(b) + len(","); err != nil || size > maxList {
			return list[:i], len(list) - i
		}
	}
	return list, 0
}

// Fit leaves out of an answer what it has no room for, but for the number.
func (r *ApplyResult) Fit() {
	var acts, failures int
	r.Acts, acts = Fit(r.Acts)
	r.Failures, failures = Fit(r.Failures)
	r.MoreActs, r.MoreFailures = r.MoreActs+acts, r.MoreFailures+failures
}

// Fit leaves out of an answer what it has no room for, but for the number.
func (r *NameResult) Fit() {
	var acts, failures int
	r.Acts, acts = Fit(r.Acts)
	r.Failures, failures = Fit(r.Failures)
	r.MoreActs, r.MoreFailures = r.MoreActs+acts, r.MoreFailures+failures
}
