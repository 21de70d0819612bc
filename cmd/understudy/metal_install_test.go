package main

import (
	"reflect"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

func TestServiceOf(t *testing.T) {
	for text, want := range map[string]wire.Service{
		"web.service":    {Name: "web", Unit: "web.service"},
		"web.service=80": {Name: "web", Unit: "web.service", Ready: 80},
	} {
		if got, err := serviceOf(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"web.service=", "web.service=0", "web.service=65536", "web.service=http"} {
		if got, err := serviceOf(text); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}
