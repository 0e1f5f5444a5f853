package exchange

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
)

// maxNesting bounds how deep the values of a JSON answer nest.
const maxNesting = 64

// Pointer is a JSON Pointer (RFC 6901). A segment * is any element of a list or any
// member of an object. nil points nowhere.
type Pointer []string

// ParsePointer parses text. An empty text is a nil Pointer.
func ParsePointer(text string) (Pointer, error) {
	if text == "" {
		return nil, nil
	}
	if text[0] != '/' {
		return nil, errors.New("is not a JSON Pointer: start it with / as in /id")
	}
	var p Pointer
	for token := range strings.SplitSeq(text[1:], "/") {
		rest := strings.NewReplacer("~0", "", "~1", "").Replace(token)
		if strings.Contains(rest, "~") {
			return nil, errors.New("is not a JSON Pointer: write ~ as ~0, and / inside a name as ~1")
		}
		p = append(p, strings.NewReplacer("~1", "/", "~0", "~").Replace(token))
	}
	return p, nil
}

// Document is the JSON of an answer. The zero value has no JSON.
type Document struct {
	root  any
	found bool // there is a root

	// Partial says that the end is missing: values may exist that were not read.
	Partial bool
}

// JSON reads the body of a. It reads an incomplete body as far as possible, but without
// a string or a number that may be cut.
func (a Answer) JSON() Document {
	text, err := a.Text("")
	if err != nil {
		return Document{}
	}
	r := jsonReader{Decoder: json.NewDecoder(strings.NewReader(text)), end: int64(len(text)), cut: a.Partial}
	r.UseNumber()
	root, found, err := r.value(0)
	if !found || err != nil && !a.Partial {
		return Document{}
	}
	return Document{root: root, found: true, Partial: err != nil}
}

// IsJSON reports whether a value was read.
func (d Document) IsJSON() bool { return d.found }

// Find returns the values to which p points, in the order of the document. Members that
// * names have no order.
func (d Document) Find(p Pointer) []any {
	if p == nil || !d.found {
		return nil
	}
	at := []any{d.root}
	for _, name := range p {
		var below []any
		for _, v := range at {
			below = append(below, step(v, name)...)
		}
		at = below
	}
	return at
}

// At returns the elements of the list to which p points, or false if there is no list. An
// empty p is the whole document.
func (d Document) At(p Pointer) ([]Document, bool) {
	found := []any{d.root}
	if whole := len(p) == 0 || len(p) == 1 && p[0] == ""; !whole {
		found = d.Find(p)
	}
	if !d.found || len(found) != 1 {
		return nil, false
	}
	list, ok := found[0].([]any)
	if !ok {
		return nil, false
	}
	elements := make([]Document, len(list))
	for i, v := range list {
		elements[i] = Document{root: v, found: true}
	}
	return elements, true
}

// Integer returns the integer to which p points, which may be written as a text.
func (d Document) Integer(p Pointer) (int64, bool) {
	text, ok := d.Text(p)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// settles reports whether d has all values to which p points: nothing that was not read can
// be one of them.
func (d Document) settles(p Pointer) bool {
	return !d.Partial || !slices.Contains(p, "*") && len(d.Find(p)) > 0
}

// Text returns the first string, or the digits of the first number, to which p points.
func (d Document) Text(p Pointer) (string, bool) {
	for _, v := range d.Find(p) {
		switch v := v.(type) {
		case string:
			return v, true
		case json.Number:
			return v.String(), true
		}
	}
	return "", false
}

func step(v any, name string) (below []any) {
	switch container := v.(type) {
	case map[string]any:
		if member, ok := container[name]; ok {
			return []any{member}
		}
		if name == "*" {
			for _, member := range container {
				below = append(below, member)
			}
		}
	case []any:
		if name == "*" {
			return container
		}
		if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(container) && strconv.Itoa(i) == name {
			return container[i : i+1]
		}
	}
	return below
}

// jsonReader builds a value from tokens, so that an incomplete document is not lost.
type jsonReader struct {
	*json.Decoder
	end int64 // of the text, in bytes
	cut bool  // the text ends too early
}

var errNesting = errors.New("the JSON nests too deeply")

// value reads one value. With an error, it returns what was read before.
func (r *jsonReader) value(depth int) (v any, found bool, err error) {
	token, err := r.Token()
	if err != nil {
		return nil, false, err
	}
	if _, number := token.(json.Number); number && r.cut && r.InputOffset() == r.end {
		return nil, false, io.ErrUnexpectedEOF // its last digits may be missing
	}
	open, ok := token.(json.Delim)
	if !ok {
		return token, true, nil
	}
	if depth == maxNesting {
		return nil, false, errNesting
	}
	if open == '[' {
		list := []any{}
		for r.More() {
			element, found, err := r.value(depth + 1)
			if found {
				list = append(list, element)
			}
			if err != nil {
				return list, true, err
			}
		}
		_, err = r.Token()
		return list, true, err
	}
	object := map[string]any{}
	for r.More() {
		name, err := r.Token()
		if err != nil {
			return object, true, err
		}
		member, found, err := r.value(depth + 1)
		if found {
			object[name.(string)] = member
		}
		if err != nil {
			return object, true, err
		}
	}
	_, err = r.Token()
	return object, true, err
}
