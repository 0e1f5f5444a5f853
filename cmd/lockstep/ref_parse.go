package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
)

// importedRef is a reference of a file.
type importedRef struct {
	line                  int
	key, externalID, etag string
	learned               values // nil: those of the key stay while its external id stays the same
}

const (
	mostKey      = 512 // bytes, as outbox.event allows
	mostProblems = 20  // that are listed of one file
)

// parseReferences reads CSV, or JSON if the first character is a brace. The errors begin with
// the number of their line.
func parseReferences(b []byte) (refs []importedRef, problems []error) {
	b = bytes.TrimPrefix(b, []byte("\uFEFF")) // a byte-order mark is not a part of the text
	var err error
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		refs, problems = parseJSONLines(b)
	} else if refs, err = parseCSV(b); err != nil {
		problems = append(problems, err)
	}
	first := map[string]int{}
	for _, r := range refs {
		err := r.check()
		if line, known := first[r.key]; known && err == nil {
			err = fmt.Errorf("key %s is on line %d too", quoted(r.key), line)
		}
		first[r.key] = r.line
		if err != nil {
			problems = append(problems, fmt.Errorf("%d: %w", r.line, err))
		}
	}
	if len(refs) == 0 && len(problems) == 0 {
		problems = append(problems, errors.New("1: no references: want CSV whose first line is key,external_id,etag,learned, or a JSON object on each line"))
	}
	if more := len(problems) - mostProblems; more > 0 {
		problems = append(problems[:mostProblems], fmt.Errorf("%d more", more))
	}
	return refs, problems
}

// check refuses what the database or a later request would not keep as it is.
func (r importedRef) check() error {
	for _, v := range []struct{ name, text string }{{"key", r.key}, {"external_id", r.externalID}, {"etag", r.etag}} {
		switch {
		case !utf8.ValidString(v.text) || strings.ContainsRune(v.text, utf8.RuneError):
			return fmt.Errorf("%s has a character that was lost in a conversion: save the file as UTF-8", v.name)
		case v.text == "" && v.name != "etag":
			return fmt.Errorf("%s is missing", v.name)
		case v.name == "key" && (len(v.text) > mostKey || strings.ContainsRune(v.text, 0)):
			return fmt.Errorf("key has more than %d bytes, or a zero byte", mostKey)
		case v.name != "key" && adapters.Clean(v.text, adapters.MaxRef) != v.text:
			return fmt.Errorf("%s has more than %d bytes, or characters that do not print", v.name, adapters.MaxRef)
		}
	}
	if err := checkETag(r.etag); err != nil {
		return fmt.Errorf("etag %w", err)
	}
	if err := r.learned.check(); err != nil {
		return fmt.Errorf("learned %w", err)
	}
	return nil
}

// checkETag refuses text that If-Match cannot send.
func checkETag(tag string) error {
	if tag == "" || adapters.ValidETag(tag) {
		return nil
	}
	value, weak := strings.CutPrefix(tag, "W/") // a shell takes the quotes of W/"2"
	quoted := `"` + value + `"`
	if weak {
		quoted = "W/" + quoted
	}
	if adapters.ValidETag(quoted) {
		return fmt.Errorf("has no quotes: write '%s'", quoted)
	}
	return errors.New(`is not one: write it with its quotes, '"v2"' or 'W/"v2"'`)
}

// check refuses values that are not kept as they are.
func (v values) check() error {
	if len(v) > adapters.MaxLearned {
		return fmt.Errorf("has %d names, but at most %d are kept", len(v), adapters.MaxLearned)
	}
	for name, value := range v {
		if name == "" || value == "" {
			return errors.New("has an empty name or value: write NAME=VALUE, or leave it out")
		}
		for _, text := range []string{name, value} {
			if !utf8.ValidString(text) || adapters.Clean(text, adapters.MaxRef) != text {
				return fmt.Errorf("has more than %d bytes in a name or value, or characters that do not print", adapters.MaxRef)
			}
		}
	}
	return nil
}

// parseValues reads a JSON object of texts. Nothing, or null, are no values.
func parseValues(b []byte) (v values, err error) {
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, errors.New(`learned must be a JSON object of texts, such as {"versionNumber": "4"}`)
	}
	return v, nil
}

func parseCSV(b []byte) ([]importedRef, error) {
	r := csv.NewReader(bytes.NewReader(b))
	header, err := r.Read()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	position := func(name string) int { return slices.Index(header, name) }
	key, id, etag, learned := position("key"), position("external_id"), position("etag"), position("learned")
	known := 0
	for _, column := range []int{key, id, etag, learned} {
		if column >= 0 {
			known++
		}
	}
	if err != nil || key < 0 || id < 0 || len(header) > known {
		return nil, errors.New("1: want the names of the columns, separated by commas: key,external_id, and perhaps etag and learned")
	}
	var refs []importedRef
	for {
		cells, err := r.Read()
		if errors.Is(err, io.EOF) {
			return refs, nil
		}
		if wrong, ok := errors.AsType[*csv.ParseError](err); ok {
			return refs, fmt.Errorf("%d: %w", wrong.Line, wrong.Err)
		}
		if err != nil {
			return refs, err
		}
		line, _ := r.FieldPos(0)
		ref := importedRef{line: line, key: cells[key], externalID: cells[id]}
		if etag >= 0 {
			ref.etag = cells[etag]
		}
		if learned >= 0 {
			if ref.learned, err = parseValues([]byte(cells[learned])); err != nil {
				return refs, fmt.Errorf("%d: %w", line, err)
			}
		}
		refs = append(refs, ref)
	}
}

func parseJSONLines(b []byte) (refs []importedRef, problems []error) {
	n := 0
	for text := range bytes.Lines(b) {
		n++
		if text = bytes.TrimSpace(text); len(text) == 0 {
			continue
		}
		var v struct {
			Key        string          `json:"key"`
			ExternalID string          `json:"external_id"`
			ETag       string          `json:"etag"`
			Learned    json.RawMessage `json:"learned"`
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		err := d.Decode(&v)
		if err == nil && d.More() {
			err = errors.New("want one JSON object on a line")
		}
		var learned values
		if err == nil {
			learned, err = parseValues(v.Learned)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%d: %s", n, strings.TrimPrefix(err.Error(), "json: ")))
			continue
		}
		refs = append(refs, importedRef{n, v.Key, v.ExternalID, v.ETag, learned})
	}
	return refs, problems
}
