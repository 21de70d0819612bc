package pair

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// compiled returns the schema, as an editor uses it.
func compiled(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("pair.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("pair.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// values returns the values of a YAML file as an editor reads them (by YAML's core schema: what
// looks like a number is one).
func values(n *yaml.Node) any {
	switch n.Kind {
	case yaml.DocumentNode:
		return values(n.Content[0])
	case yaml.MappingNode:
		m := make(map[string]any)
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = values(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		s := []any{}
		for _, c := range n.Content {
			s = append(s, values(c))
		}
		return s
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		if _, err := strconv.ParseFloat(n.Value, 64); err == nil {
			return json.Number(n.Value)
		}
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!null":
		return nil
	}
	return n.Value
}

func valuesOf(t testing.TB, text string) any {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	return values(&n)
}

// full has every key.
const full = example + nfs

// object is one of the schema's objects, with the place of such an object in a file.
type object struct {
	at     []string // keys and indices
	schema map[string]any
}

// objects collects the schema's objects by walking the schema beside a file that has every key.
func objects(t *testing.T, root map[string]any, s map[string]any, file any, at []string, found *[]object) {
	t.Helper()
	if ref, ok := s["$ref"].(string); ok {
		s = root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
	}
	switch v := file.(type) {
	case map[string]any:
		properties, ok := s["properties"].(map[string]any)
		if !ok { // the partitions, by name
			for name, value := range v {
				objects(t, root, s["additionalProperties"].(map[string]any), value, append(slices.Clone(at), name), found)
			}
			return
		}
		*found = append(*found, object{at, s})
		for key, value := range v {
			p, ok := properties[key].(map[string]any)
			if !ok {
				t.Errorf("%v.%s is not in the schema", at, key)
				continue
			}
			objects(t, root, p, value, append(slices.Clone(at), key), found)
		}
	case []any:
		if items, ok := s["items"].(map[string]any); ok {
			for i, item := range v {
				objects(t, root, items, item, append(slices.Clone(at), strconv.Itoa(i)), found)
			}
		}
	}
}

// TestSchemaHasTheKeys compares the keys of the schema, and which of them are required,
// with what the reader says about a file with an unknown or a missing key.
func TestSchemaHasTheKeys(t *testing.T) {
	var root map[string]any
	if err := json.Unmarshal(Schema, &root); err != nil {
		t.Fatal(err)
	}
	var found []object
	objects(t, root, root, valuesOf(t, full), nil, &found)
	kinds := make(map[string]bool)
	for _, o := range found {
		where := strings.Join(o.at, ".")
		kinds[regexp.MustCompile(`\d+|left|right`).ReplaceAllString(where, "*")] = true
		known := regexp.MustCompile(`known here: ([a-z0-9_, ]*)`).FindStringSubmatch(refusal(t, o.at, "a-key-that-nobody-has", true))
		if known == nil {
			t.Errorf("the reader does not say which keys %s has", where)
			continue
		}
		keys := slices.Sorted(strings.SplitSeq(known[1], ", "))
		if got := slices.Sorted(maps.Keys(o.schema["properties"].(map[string]any))); !slices.Equal(got, keys) {
			t.Errorf("the schema has the keys %v in %q, the reader %v", got, where, keys)
		}
		if o.schema["additionalProperties"] != false {
			t.Errorf("%s may have other keys by the schema", where)
		}
		for _, key := range keys {
			must := strings.Contains(refusal(t, o.at, key, false), fmt.Sprintf("key %q is missing", key))
			required, _ := o.schema["required"].([]any)
			if must != slices.Contains(required, any(key)) {
				t.Errorf("%s.%s must be there: %v; by the schema: %v", where, key, must, !must)
			}
		}
	}
	want := []string{"", "disks.*", "heartbeat", "hooks.*", "nfs", "nics.*", "nics.*.routes.*", "partitions.*", "services.*", "takeover"}
	if got := slices.Sorted(maps.Keys(kinds)); !slices.Equal(got, want) {
		t.Errorf("looked at %v, not %v", got, want)
	}
}

// refusal returns what the reader says about the full file with a key added to, or removed from,
// one of its mappings.
func refusal(t *testing.T, at []string, key string, add bool) string {
	t.Helper()
	file := valuesOf(t, full)
	in := file
	for _, step := range at {
		switch v := in.(type) {
		case map[string]any:
			in = v[step]
		case []any:
			i, _ := strconv.Atoi(step) // it is an index
			in = v[i]
		}
	}
	if add {
		in.(map[string]any)[key] = "x"
	} else {
		delete(in.(map[string]any), key)
	}
	text, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = parse("f", "/d", text); err == nil {
		return ""
	}
	return err.Error()
}

// TestSchemaHasTheWords: where the reader accepts one of some words, the schema has the same words.
func TestSchemaHasTheWords(t *testing.T) {
	file := full
	for _, at := range [][]string{{"partitions", "left", "accel"}, {"disks", "0", "type"}, {"takeover", "sync"}, {"takeover", "refused"}, {"takeover", "degraded"}} {
		doc := valuesOf(t, file).(map[string]any)
		in := any(doc)
		for _, step := range at[:len(at)-1] {
			if s, ok := in.([]any); ok {
				i, _ := strconv.Atoi(step) // it is an index
				in = s[i]
			} else {
				in = in.(map[string]any)[step]
			}
		}
		last := at[len(at)-1]
		in.(map[string]any)[last] = "a-word-that-nobody-knows"
		err := compiled(t).Validate(doc)
		text, _ := yaml.Marshal(doc)
		_, perr := parse("f", "/d", text)
		if err == nil || perr == nil {
			t.Fatalf("%v takes any word: %v, %v", at, err, perr)
		}
		words := regexp.MustCompile(`use one of \[([a-z0-9 ]+)\]`).FindStringSubmatch(perr.Error())
		for _, word := range strings.Fields(words[1]) {
			in.(map[string]any)[last] = word
			if err := compiled(t).Validate(doc); err != nil {
				t.Errorf("the schema refuses %v: %s: %v", at, word, err)
			}
		}
		if got := strings.Count(err.Error(), "'") / 2; got < len(strings.Fields(words[1])) {
			t.Errorf("%v: %v", at, err)
		}
	}
}

func TestSchemaAccepts(t *testing.T) {
	s := compiled(t)
	for name, text := range map[string]string{"full": full, "smallest": smallest, "units": units, "words": strings.Replace(example, "disk: off", "disk: 1m30s", 1)} {
		if _, err := parse("f", "/d", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Validate(valuesOf(t, text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for what, text := range map[string]string{
		"an unknown key": smallest + "extra: 1\n", "three partitions": smallest + "  c: {cpus: '1', memory: 128MiB, kernel: k, initramfs: i}\n",
		"no unit": strings.Replace(smallest, "128MiB", "128", 1), "nothing to boot": strings.Replace(smallest, ", initramfs: i", "", 1),
		"an unknown event": smallest + "hooks: [{command: [/bin/true], on: [panic]}]\n", "two ways to start": smallest + "services: [{name: s, command: [a], unit: a.service}]\n", "a limit of a unit's": units + "  - {name: s, unit: a.service, stop: 5s}\n", "no way to start": smallest + "services: [{name: s}]\n",
		"a duration": smallest + "heartbeat: {limit: 300}\n",
	} {
		if err := s.Validate(valuesOf(t, text)); err == nil {
			t.Errorf("the schema accepts %s", what)
		}
	}
}

// FuzzSchema: the schema never refuses a file that the reader accepts.
func FuzzSchema(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(smallest))
	f.Add([]byte(units))
	f.Add([]byte(strings.Replace(smallest, `"0"`, "0", 1)))
	s := compiled(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := parse("f", "/d", text); err != nil {
			return
		}
		if err := s.Validate(valuesOf(t, string(text))); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	})
}
