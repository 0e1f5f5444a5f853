package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// TestReference compares the reference of all keys with the schema. `make docs` rewrites it.
func TestReference(t *testing.T) {
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root schemaNode
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	r := referencePage{t: t}
	r.WriteString("# All keys of the configuration\n\n" +
		"`make docs` writes this page from the JSON Schema that `lockstep config schema` prints. [configuration.md](configuration.md) explains the keys, with examples; [adapters.md](adapters.md) and its pages explain those of `adapter`. A key in **bold** is required. In `routes` and `known` of an adapter, a key that is left out has the value of the level above.\n")
	r.section("The file", root)
	for _, name := range slices.Sorted(maps.Keys(root.Defs)) {
		r.section(name, root.Defs[name])
	}
	golden(t, "../../docs/configuration-reference.md", []byte(r.String()))
}

// schemaNode is what the reference shows of a schema.
type schemaNode struct {
	Ref         string                `json:"$ref"`
	Defs        map[string]schemaNode `json:"$defs"`
	Type        any                   `json:"type"`
	Description string                `json:"description"`
	Default     any                   `json:"default"`
	Minimum     json.Number           `json:"minimum"`
	Maximum     json.Number           `json:"maximum"`
	Const       any                   `json:"const"`
	Enum        []any                 `json:"enum"`
	Required    []string              `json:"required"`
	Properties  map[string]schemaNode `json:"properties"`
	Items       *schemaNode           `json:"items"`
	Values      any                   `json:"additionalProperties"`
	AnyOf       []schemaNode          `json:"anyOf"`
	OneOf       []schemaNode          `json:"oneOf"`
}

// referencePage is the page while it is written.
type referencePage struct {
	strings.Builder
	t *testing.T
}

// section writes the keys of an object, and a section for each object in it.
func (r *referencePage) section(path string, n schemaNode) {
	fmt.Fprintf(r, "\n## %s\n\n| key | type | default | limits | meaning |\n|---|---|---|---|---|\n", path)
	keys := slices.Sorted(maps.Keys(n.Properties))
	for _, key := range keys {
		p := n.Properties[key]
		name := "`" + key + "`"
		if slices.Contains(n.Required, key) {
			name = "**" + name + "**"
		}
		if p.Description == "" && p.Const == nil {
			r.t.Errorf("%s.%s has no description: add the tag doc to its field", path, key)
		}
		var standard, limits string
		if p.Default != nil {
			standard = fmt.Sprintf("`%v`", p.Default)
		}
		if p.Minimum != "" && p.Maximum != "0" { // 0 to 0: a duration, whose only number is 0
			limits = fmt.Sprintf("%s to %s", p.Minimum, p.Maximum)
		}
		fmt.Fprintf(r, "| %s | %s | %s | %s | %s |\n", name, p.kind(), standard, limits, strings.ReplaceAll(p.Description, "|", `\|`))
	}
	if strings.HasSuffix(path, ".known") || strings.HasSuffix(path, ".routes.NAME") {
		return // the objects in it are those of the level above
	}
	if path == "The file" {
		path = ""
	} else {
		path += "."
	}
	for _, key := range keys {
		if key == "second" {
			continue // the same keys as the first
		}
		r.inside(path+key, n.Properties[key])
	}
}

// inside writes the sections of the objects in a value.
func (r *referencePage) inside(path string, n schemaNode) {
	if n.Properties != nil {
		r.section(path, n)
	}
	if n.Items != nil {
		r.inside(path+"[]", *n.Items)
	}
	if v := n.values(); v != nil {
		r.inside(path+".NAME", *v)
	}
	for _, form := range n.AnyOf {
		r.inside(path, form)
	}
	for _, form := range n.OneOf {
		r.inside(fmt.Sprintf("%s (%v)", path, form.Properties["kind"].Const), form)
	}
}

// values is the schema of the values of a mapping whose keys are free.
func (n schemaNode) values() *schemaNode {
	fields, ok := n.Values.(map[string]any)
	if !ok {
		return nil
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return nil
	}
	var v schemaNode
	if json.Unmarshal(text, &v) != nil {
		return nil
	}
	return &v
}

// kind is the type of a value, in words.
func (n schemaNode) kind() string {
	switch {
	case n.Const != nil:
		return fmt.Sprintf("`%v`", n.Const)
	case n.Ref != "":
		name := n.Ref[strings.LastIndex(n.Ref, "/")+1:]
		return "[" + name + "](#" + strings.ToLower(name) + ")"
	case n.Enum != nil:
		var words []string
		for _, word := range n.Enum {
			if w := fmt.Sprintf("`%v`", word); !slices.Contains(words, w) { // true and "true"
				words = append(words, w)
			}
		}
		return strings.Join(words, ", ")
	case n.Items != nil:
		return "list of " + n.Items.kind()
	case n.AnyOf != nil:
		var forms []string
		for _, form := range n.AnyOf {
			if k := form.kind(); k != "" && !slices.Contains(forms, k) {
				forms = append(forms, k)
			}
		}
		if len(forms) > 1 && forms[len(forms)-1] == "text" && strings.HasPrefix(forms[0], "`") {
			forms = forms[:len(forms)-1] // the text is a ${NAME}
		}
		return strings.Join(forms, " or ")
	case n.values() != nil:
		return "mapping"
	}
	first, ok := n.Type.(string)
	if list, several := n.Type.([]any); several {
		first, ok = fmt.Sprint(list[0]), true
	}
	if !ok {
		return "any value"
	}
	return map[string]string{"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "section"}[first]
}
