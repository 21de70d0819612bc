package agent

import (
	"slices"
	"strings"
	"testing"
)

// TestCheckerSpeaksEnglish: e2fsck, whose output is parsed, speaks English whatever language the guest's system has.
func TestCheckerSpeaksEnglish(t *testing.T) {
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	env := checker(t.Context(), "/dev/null").Environ()
	if i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, "LC_ALL=") }); i < 0 || env[i] != "LC_ALL=C" {
		t.Errorf("environment %q", env)
	}
}
