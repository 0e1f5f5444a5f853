package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"

	"github.com/hms-mkt/lockstep/relay/mapping"
	"go.yaml.in/yaml/v4"
)

// Fields is the mapping of a sync, in the order of the file.
type Fields []mapping.Field

// longField is the long form of one entry.
type longField struct {
	To       string            `yaml:"to" pattern:"^[^.]+([.][^.]+)*$" doc:"Name at the receiver; dots make objects."`
	Time     *timeFormat       `yaml:"time" doc:"The value is a time: convert and format it."`
	Values   map[string]string `yaml:"values" filled:"true" doc:"The value is a code: look it up."`
	Default  json.RawMessage   `yaml:"default" doc:"Sent when the source is missing or null, or not in values."`
	Const    json.RawMessage   `yaml:"const" doc:"Always sent; the key is the name at the receiver."`
	Optional bool              `yaml:"optional" doc:"Leave the field out when the source is missing or null."`
}

type timeFormat struct {
	Zone   string `yaml:"zone" pattern:"^[A-Za-z0-9_+/-]+$" doc:"IANA zone such as America/New_York. Default: the offset of the source."`
	Format string `yaml:"format" doc:"A named format or a Go layout. Default: RFC3339."`
}

func (m *Fields) decode(d *decoder, n *node) *yaml.Node {
	if n.kind != kindMap {
		return d.wrong(n, "a section of source fields and target fields, such as hearingId: case_reference")
	}
	out := mappingNode()
	for _, item := range n.items {
		f := mapping.Field{From: item.key, To: item.text}
		switch item.kind {
		case kindText:
			put(out, item.key, showText(item, false))
		case kindMap:
			put(out, item.key, d.longField(item, &f))
		default:
			d.wrong(item, "the name of the target field, or a section with the key to")
		}
		if !item.failed {
			*m = append(*m, f)
		}
	}
	return out
}

func (d *decoder) longField(n *node, f *mapping.Field) *yaml.Node {
	var long longField
	out := d.object(n, reflect.ValueOf(&long).Elem())
	f.To, f.Values, f.Default, f.Const, f.Optional = long.To, long.Values, long.Default, long.Const, long.Optional
	if long.Time != nil {
		f.Time = &mapping.TimeFormat{Zone: long.Time.Zone, Format: long.Time.Format}
	}
	switch {
	case f.Const != nil && f.To != "":
		d.at(n, "has both to and const: a constant has no source, so its key is the target name; remove to")
	case f.Const != nil:
		f.From, f.To = "", n.key
	case f.To == "":
		d.at(n, "has no target name: add to: NAME")
	}
	return out
}

func (m *Fields) schema() map[string]any {
	return map[string]any{
		"type": "object",
		"additionalProperties": map[string]any{
			"anyOf": []any{textSchema(`pattern:"^[^.]+([.][^.]+)*$"`), objectSchema(reflect.TypeFor[longField]())},
		},
	}
}

// Compute is the compute section of a sync, in the order of the file.
type Compute []mapping.Computed

func (c *Compute) decode(d *decoder, n *node) *yaml.Node {
	if n.kind != kindMap {
		return d.wrong(n, `a section of target fields and expressions, such as title: '"Hearing " + event.hearingId'`)
	}
	out := mappingNode()
	for _, item := range n.items {
		long := longComputed{Expr: item.text}
		switch item.kind {
		case kindText:
			put(out, item.key, showText(item, false))
		case kindMap:
			put(out, item.key, d.object(item, reflect.ValueOf(&long).Elem()))
		default:
			d.wrong(item, "an expression, as text in quotes, or a section with the key expr")
		}
		if !item.failed {
			*c = append(*c, mapping.Computed{To: item.key, Expr: long.Expr, Optional: long.Optional})
		}
	}
	return out
}

// longComputed is the long form of one entry.
type longComputed struct {
	Expr     string `yaml:"expr" required:"true" doc:"The expression."`
	Optional bool   `yaml:"optional" doc:"Leave the field out when the result is null."`
}

func (c *Compute) schema() map[string]any {
	return map[string]any{
		"type": "object",
		"additionalProperties": map[string]any{
			"anyOf": []any{textSchema(`check:"condition"`), objectSchema(reflect.TypeFor[longComputed]())},
		},
	}
}

func (s Sync) mapping() mapping.Mapping {
	return mapping.Mapping{Fields: s.Mapping, Compute: s.Compute}
}

// compileMapping reports each problem of m at its position. n has the keys mapping and
// compute. It returns the names of the fields that the mapping makes.
func (d *decoder) compileMapping(n *node, m mapping.Mapping) (made []string) {
	entries := func(key string) []*node { // the decoded ones
		return slices.DeleteFunc(slices.Clone(n.at(key).items), func(item *node) bool { return item.failed })
	}
	fields, computed := entries("mapping"), entries("compute")
	_, err := m.Compile()
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			e, _ := errors.AsType[*mapping.MappingError](err)
			switch {
			case e == nil:
			case e.Computed:
				d.at(computed[e.Index], "%s", d.redactExpression(computed[e.Index], e.Err.Error()))
			default:
				d.at(fields[e.Index], "%s", d.redact(fields[e.Index], e.Err.Error()))
			}
		}
	}
	for _, f := range m.Fields {
		made = append(made, f.To)
	}
	for _, c := range m.Compute {
		made = append(made, c.To)
	}
	return made
}

// json decodes any value. It keeps digits as written and the order of the file.
func (d *decoder) json(n *node, raw *json.RawMessage) *yaml.Node {
	switch n.kind {
	case kindBroken:
		return nil
	case kindNull:
		*raw = json.RawMessage("null")
		return plain("null")
	case kindBool, kindNumber:
		*raw = json.RawMessage(n.text)
		if !json.Valid(*raw) {
			d.at(n, "%s is not JSON: write decimal digits, true or false, or put it in quotes", d.quote(n))
		}
		return plain(n.text)
	case kindText:
		*raw = quoteJSON(n.text)
		return showText(n, false)
	default:
	}
	out, between := mappingNode(), "{}"
	if n.kind == kindList {
		out.Kind, between = yaml.SequenceNode, "[]"
	}
	*raw = append(*raw, between[0])
	for i, item := range n.items {
		if i > 0 {
			*raw = append(*raw, ',')
		}
		if n.kind == kindMap {
			*raw = append(append(*raw, quoteJSON(item.key)...), ':')
			out.Content = append(out.Content, text(item.key))
		}
		var value json.RawMessage
		out.Content = append(out.Content, d.json(item, &value))
		*raw = append(*raw, value...)
	}
	*raw = append(*raw, between[1])
	return out
}

func quoteJSON(s string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string always encodes
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
