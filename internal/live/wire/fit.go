package wire

import "encoding/json"

// maxList bounds, in bytes, a list in a message that has the outcome of each file: an answer has
// at most two such lists, and room for more.
const maxList = 6 << 20

// Fit returns the first items of a list, as many as a message has room for, and the number of the others.
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

// Fit removes from an answer what it has no room for, and counts that.
func (r *ApplyResult) Fit() {
	var acts, failures int
	r.Acts, acts = Fit(r.Acts)
	r.Failures, failures = Fit(r.Failures)
	r.MoreActs, r.MoreFailures = r.MoreActs+acts, r.MoreFailures+failures
}

// Fit removes from an answer what it has no room for, and counts that.
func (r *NameResult) Fit() {
	var acts, failures int
	r.Acts, acts = Fit(r.Acts)
	r.Failures, failures = Fit(r.Failures)
	r.MoreActs, r.MoreFailures = r.MoreActs+acts, r.MoreFailures+failures
}
