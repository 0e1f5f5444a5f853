package config

import (
	"encoding/json"
	"errors"
	"reflect"

	"github.com/hms-mkt/lockstep/relay/mapping"
)

// mappingSpec is the mapping of a sync, in the order of the file.
type mappingSpec struct {
	fields []mapping.Field
	nodes  []*node
	paths  []string
}

// fieldSpec is the long form of one entry.
type fieldSpec struct {
	To       string            `yaml:"to" doc:"Name at the receiver; dots make objects."`
	Time     *timeSpec         `yaml:"time" doc:"The value is a time: convert and format it."`
	Values   map[string]string `yaml:"values" doc:"The value is a code: look it up."`
	Default  anySpec           `yaml:"default" doc:"Sent when the source is missing or null, or not in values."`
	Const    anySpec           `yaml:"const" doc:"Always sent; the key is the name at the receiver."`
	Optional bool              `yaml:"optional" doc:"Leave the field out when the source is missing or null."`
}

type timeSpec struct {
	Zone   string `yaml:"zone" doc:"IANA zone such as America/New_York; by default the offset of the source is kept."`
	Format string `yaml:"format" doc:"A named format or a Go layout; by default RFC3339."`
}

func (m *mappingSpec) decode(d *decoder, n *node, path string) *shown {
	if n.kind == kindNull {
		return nil
	}
	if n.kind != kindMap {
		d.wrong(n, path, "a mapping of source fields to target fields, such as hearingId: case_reference")
		return nil
	}
	out := &shown{object: true}
	for _, e := range n.entries {
		at := join(path, e.key)
		f := mapping.Field{From: e.key}
		switch e.value.kind {
		case kindText:
			f.To = e.value.text
			out.put(e.key, showText(e.value, false))
		case kindMap:
			s, ok := longField(d, e, at, &f)
			out.put(e.key, s)
			if !ok {
				continue
			}
		default:
			d.wrong(e.value, at, "the name of the target field, or a mapping with the key to")
			continue
		}
		if e.value.broken {
			continue
		}
		m.fields = append(m.fields, f)
		m.nodes = append(m.nodes, e.value)
		m.paths = append(m.paths, at)
	}
	return out
}

func longField(d *decoder, e entry, path string, f *mapping.Field) (*shown, bool) {
	var spec fieldSpec
	before := len(d.problems)
	s := d.object(e.value, reflect.ValueOf(&spec).Elem(), path)
	switch {
	case spec.Const.raw != nil && spec.To != "":
		d.at(e.value, path, "has both to and const: a constant has no source, so its key is the target name; remove to")
	case spec.Const.raw != nil:
		f.From, f.To = "", e.key
	case spec.To == "":
		d.at(e.value, path, "has no target name: add to: NAME")
	default:
		f.To = spec.To
	}
	if spec.Time != nil {
		f.Time = &mapping.TimeFormat{Zone: spec.Time.Zone, Format: spec.Time.Format}
	}
	f.Values, f.Default, f.Const, f.Optional = spec.Values, spec.Default.raw, spec.Const.raw, spec.Optional
	return s, len(d.problems) == before
}

func (m *mappingSpec) schema() map[string]any {
	return map[string]any{
		"type": "object",
		"additionalProperties": map[string]any{
			"anyOf": []any{map[string]any{"type": "string"}, objectSchema(reflect.TypeFor[fieldSpec]())},
		},
	}
}

// computeSpec is the compute section of a sync, in the order of the file.
type computeSpec struct {
	fields []mapping.Computed
	nodes  []*node
	paths  []string
}

func (c *computeSpec) decode(d *decoder, n *node, path string) *shown {
	if n.kind == kindNull {
		return nil
	}
	if n.kind != kindMap {
		d.wrong(n, path, `a mapping of target fields to expressions, such as title: '"Hearing " + event.hearingId'`)
		return nil
	}
	out := &shown{object: true}
	for _, e := range n.entries {
		at := join(path, e.key)
		if e.value.kind != kindText {
			d.wrong(e.value, at, "an expression, as text in quotes")
			continue
		}
		out.put(e.key, showText(e.value, false))
		if e.value.broken {
			continue
		}
		c.fields = append(c.fields, mapping.Computed{To: e.key, Expr: e.value.text})
		c.nodes = append(c.nodes, e.value)
		c.paths = append(c.paths, at)
	}
	return out
}

func (c *computeSpec) schema() map[string]any {
	return map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}}
}

// compileMapping compiles what m and c say, and reports each problem where it is.
func compileMapping(d *decoder, m *mappingSpec, c *computeSpec) mapping.Mapping {
	made := mapping.Mapping{Fields: m.fields, Compute: c.fields}
	_, err := made.Compile()
	for _, err := range flatten(err) {
		var e *mapping.MappingError
		if !errors.As(err, &e) {
			continue
		}
		if e.Computed {
			n, path := c.nodes[e.Index], c.paths[e.Index]
			d.at(n, path, "%s", d.redactExpression(n, e.Err.Error()))
			continue
		}
		n, path := m.nodes[e.Index], m.paths[e.Index]
		d.at(n, path, "%s", d.redact(n, e.Err.Error()))
	}
	return made
}

// anySpec is any JSON value, with its digits as written.
type anySpec struct{ raw json.RawMessage }

func (a *anySpec) decode(d *decoder, n *node, path string) *shown {
	raw, ok := d.json(n, path)
	if !ok {
		return nil
	}
	a.raw = raw
	return showJSON(n)
}

func (a *anySpec) schema() map[string]any { return map[string]any{} }

// json renders n as JSON in the order of the file.
func (d *decoder) json(n *node, path string) (json.RawMessage, bool) {
	switch n.kind {
	case kindNull:
		return json.RawMessage("null"), !n.broken
	case kindBool:
		return json.RawMessage(n.text), true
	case kindInt, kindFloat:
		if !json.Valid([]byte(n.text)) {
			d.at(n, path, "%s is not a number that JSON can hold: write decimal digits, or put it in quotes", d.quote(n))
			return nil, false
		}
		return json.RawMessage(n.text), true
	case kindText:
		return quoteJSON(n.text), !n.broken
	case kindList:
		out := []byte{'['}
		for i, item := range n.items {
			raw, ok := d.json(item, path)
			if !ok {
				return nil, false
			}
			if i > 0 {
				out = append(out, ',')
			}
			out = append(out, raw...)
		}
		return append(out, ']'), true
	case kindMap:
	}
	out := []byte{'{'}
	for i, e := range n.entries {
		raw, ok := d.json(e.value, join(path, e.key))
		if !ok {
			return nil, false
		}
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, quoteJSON(e.key)...), ':'), raw...)
	}
	return append(out, '}'), true
}
