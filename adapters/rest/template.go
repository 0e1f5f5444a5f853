package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// template is text with placeholders such as {key}.
type template struct {
	text  string
	parts []part
}

// part is a piece of text, or the name of a placeholder.
type part struct{ literal, name string }

var placeholder = regexp.MustCompile(`\{([^{}]*)\}`)

// parseTemplate splits text and refuses names that known does not know.
func parseTemplate(text string, known func(name string) bool) (template, error) {
	t := template{text: text}
	var errs []error
	literal := func(s string) {
		if strings.ContainsAny(s, "{}") {
			errs = append(errs, errors.New("a brace does not belong to a placeholder such as {key}"))
		}
		if s != "" {
			t.parts = append(t.parts, part{literal: s})
		}
	}
	end := 0
	for _, m := range placeholder.FindAllStringSubmatchIndex(text, -1) {
		literal(text[end:m[0]])
		name := text[m[2]:m[3]]
		if !known(name) {
			errs = append(errs, fmt.Errorf("{%s} is not a placeholder that can stand here", name))
		}
		t.parts = append(t.parts, part{name: name})
		end = m[1]
	}
	literal(text[end:])
	return t, errors.Join(errs...)
}

// expand fills the placeholders; escape gets each value.
func (t template) expand(v *values, escape func(string) (string, error)) (string, error) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.name == "" {
			b.WriteString(p.literal)
			continue
		}
		value, err := v.get(p.name)
		if err == nil {
			value, err = escape(value)
		}
		if err != nil {
			return "", fmt.Errorf("{%s} %w", p.name, err)
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

const fieldPrefix = "fields."

// inURL tells whether a placeholder may stand in a URL.
func inURL(name string) bool {
	switch name {
	case "ref.external_id", "key", "id", "version":
		return true
	}
	field, ok := strings.CutPrefix(name, fieldPrefix)
	return ok && !strings.Contains("."+field+".", "..")
}

// inHeader tells whether a placeholder may stand in a header's value.
func inHeader(name string) bool {
	return inURL(name) || name == "type" || name == "occurred_at"
}

// values are what the placeholders of one message stand for.
type values struct {
	msg    adapters.Message
	fields map[string]any // decoded when first needed
}

var errNotKnown = errors.New("is not known")

// get returns the value of a placeholder. Its errors do not repeat values.
func (v *values) get(name string) (string, error) {
	var value string
	switch name {
	case "ref.external_id":
		value = v.msg.Ref.ExternalID
	case "key":
		value = v.msg.Key
	case "id":
		value = v.msg.ID
	case "type":
		value = v.msg.Type
	case "version":
		if v.msg.Version != nil {
			value = strconv.FormatInt(*v.msg.Version, 10)
		}
	case "occurred_at":
		if !v.msg.OccurredAt.IsZero() {
			value = v.msg.OccurredAt.UTC().Format(time.RFC3339Nano)
		}
	default:
		return v.field(strings.TrimPrefix(name, fieldPrefix))
	}
	if value == "" {
		return "", errNotKnown
	}
	return value, nil
}

func (v *values) field(path string) (string, error) {
	if v.fields == nil {
		fields, err := v.msg.Fields()
		if err != nil {
			return "", errors.New("cannot be read: the body is not a JSON object")
		}
		v.fields = fields
	}
	var at any = v.fields
	for name := range strings.SplitSeq(path, ".") {
		object, _ := at.(map[string]any)
		at = object[name]
	}
	switch at := at.(type) {
	case string:
		if at == "" {
			return "", errors.New("is empty")
		}
		return at, nil
	case json.Number:
		return at.String(), nil
	case bool:
		return strconv.FormatBool(at), nil
	case nil:
		return "", errNotKnown
	default:
		return "", errors.New("is an object or a list")
	}
}
