package config

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
)

// notForSchemas is the first line of files whose mistake needs an expression, another part
// of the file, or the environment.
const notForSchemas = "# A schema cannot see this.\n"

// The checker refuses every file of testdata/wrong, and so does the schema where a schema
// can.
func TestWrongFiles(t *testing.T) {
	schema := compiledSchema(t)
	files, err := filepath.Glob("testdata/wrong/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 100 {
		t.Errorf("only %d files", len(files))
	}
	bySchema := 0
	for _, path := range files {
		name := filepath.Base(path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(name, data, testEnv); err == nil {
			t.Errorf("%s: the checker accepts it", name)
		}
		refused := schema.Validate(asJSON(t, data)) != nil
		if refused {
			bySchema++
		}
		if beyond := bytes.HasPrefix(data, []byte(notForSchemas)); refused == beyond {
			t.Errorf("%s: the schema refuses it: %t", name, refused)
		}
	}
	t.Logf("of %d wrong files, the schema refuses %d", len(files), bySchema)
}

// The schema accepts what the checker accepts.
func TestTheSchemaAcceptsValidFiles(t *testing.T) {
	schema := compiledSchema(t)
	check := func(name string, data []byte) {
		t.Helper()
		if _, err := Parse(name, data, docEnv); err != nil {
			return // an excerpt
		}
		if err := schema.Validate(asJSON(t, data)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"example.yaml", "example.json", "secrets.yaml"} {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(asJSON(t, data)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{
		"retry: {initial: 0s, max: 1d12h, jitter: 0, max_age: 365d}\n    limits: {rate: 0}",
		"retry: {initial: 1.5s, jitter: 100%}\n    limits: {rate: 0.5/s, concurrency: '${N:-4}'}",
		"on_failed: ${POLICY:-block}\n    notify: ${NOTIFY:-true}",
		"mapping: {a: b.c, d: {const: [1, null]}, e: {to: f, time: {zone: America/Argentina/Buenos_Aires}}, g: {to: h, values: {'1': x}, default: 0}}",
		"mapping: {}\n    compute: {}",
		"windows: [{days: Mon-Fri, from: '08:00', to: '18:00', zone: America/New_York}, {days: 'Sat, Sun', from: '22:00', to: '06:00'}, {days: Fri-Mon, from: '00:00', to: '24:00'}]\n    holidays: ['2026-12-25']",
	} {
		data := []byte("syncs:\n  - name: A\n    event: 'a:*'\n    from: 2027-03-01T00:00:00.5-05:00\n    adapter: {kind: rest, url: HTTPS://h/}\n    " + text + "\n")
		if err := schema.Validate(asJSON(t, data)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	blocks := 0
	for _, pattern := range []string{"../../docs/*.md", "../../docs/*/*.md", "../../README.md"} {
		docs, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range docs {
			data, err := os.ReadFile(doc)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range yamlBlock.FindAllStringSubmatch(string(data), -1) {
				if strings.Contains(m[1], "syncs:") {
					blocks++
					check(doc, []byte(m[1]))
				}
			}
		}
	}
	if blocks < 5 {
		t.Errorf("only %d examples found", blocks)
	}
}

var yamlBlock = regexp.MustCompile("(?s)```ya?ml\n(.*?)```")

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	b, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("lockstep.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("lockstep.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// asJSON returns a YAML or JSON file as an editor's validator sees it.
func asJSON(t *testing.T, data []byte) any {
	t.Helper()
	if !json.Valid(data) {
		var doc yaml.Node
		if err := yaml.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		data = appendJSON(nil, doc.Content[0])
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// appendJSON writes a YAML value as JSON. Dates are text.
func appendJSON(b []byte, n *yaml.Node) []byte {
	switch {
	case n.Kind == yaml.SequenceNode:
		b = append(b, '[')
		for i, item := range n.Content {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSON(b, item)
		}
		return append(b, ']')
	case n.Kind == yaml.MappingNode:
		b = append(b, '{')
		for i := 0; i < len(n.Content); i += 2 {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(append(b, quoteJSON(n.Content[i].Value)...), ':')
			b = appendJSON(b, n.Content[i+1])
		}
		return append(b, '}')
	case n.Tag == "!!null":
		return append(b, "null"...)
	case n.Tag == "!!bool", n.Tag == "!!int", n.Tag == "!!float":
		return append(b, n.Value...)
	}
	return append(b, quoteJSON(n.Value)...)
}
