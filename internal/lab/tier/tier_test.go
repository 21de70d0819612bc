package tier

import "testing"

func TestTiers(t *testing.T) {
	type ran struct{ plain, guest, full bool }
	for tier, want := range map[string]ran{
		"quick": {true, false, false}, "": {true, true, false}, "test": {true, true, false}, "full": {true, true, true},
	} {
		t.Setenv(variable, tier)
		var got ran
		t.Run("plain "+tier, func(t *testing.T) { got.plain = true })
		t.Run("guest "+tier, func(t *testing.T) { Guest(t); got.guest = true })
		t.Run("full "+tier, func(t *testing.T) { Full(t, "a trial"); got.full = true })
		if got != want {
			t.Errorf("%q runs %+v, not %+v", tier, got, want)
		}
	}
}
