package rest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// The kinds of bodies.
const (
	jsonBody     = "json"
	listBody     = "list"
	formBody     = "form"
	templateBody = "template"
	noBody       = "none"
)

// body writes the body of a request.
type body struct {
	kind        string
	contentType string
	lines       []placeholder.Template // of a template, each with the end of its line
	escape      func(string) (string, error)
	fold        bool // end the lines with CRLF, and fold long ones
	omit        []string
	shape       string // of the settings, see [adapters.Shaper]
}

func (b Body) parse() (body, error) {
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf(field+": "+format, args...))
	}
	parsed := body{kind: cmp.Or(b.Kind, jsonBody), contentType: b.ContentType, omit: b.Omit}
	isTemplate := parsed.kind == templateBody
	if !isTemplate && b.Template != "" {
		wrong("template", "belongs to kind template: add kind: template")
	}
	if !isTemplate && b.Escape != "" {
		wrong("escape", "belongs to kind template: remove it")
	}
	if len(b.Omit) > 0 && (isTemplate || parsed.kind == noBody) {
		wrong("omit", "belongs to the kinds json, list and form: remove it")
	}
	if b.ContentType != "" && (placeholder.Plain(b.ContentType) != nil || !validType(b.ContentType)) {
		wrong("content_type", "is not a media type such as text/xml; charset=utf-8")
	}
	switch parsed.kind {
	case jsonBody, listBody:
		parsed.contentType = cmp.Or(b.ContentType, "application/json")
	case formBody:
		parsed.contentType = cmp.Or(b.ContentType, "application/x-www-form-urlencoded")
	case noBody:
		if b.ContentType != "" {
			wrong("content_type", "does not belong to kind none: remove it")
		}
	case templateBody:
		if b.Template == "" {
			wrong("template", "is required for kind template")
		}
		if b.ContentType == "" {
			wrong("content_type", "is required for kind template: write one such as application/xml")
		}
		escape := cmp.Or(b.Escape, escapeOf(b.ContentType))
		parsed.fold = escape == "calendar"
		parsed.escape = escapes[escape]
		if parsed.escape == nil && b.ContentType != "" {
			wrong("escape", "is required for this content_type: write xml, json, calendar, form or none")
		}
		number := 0
		for line := range strings.Lines(b.Template) {
			number++
			t, err := placeholder.Names{}.ParseBody(line)
			for _, mistake := range placeholder.Mistakes(err) {
				wrong("template", "line %d, column %d: %w", number, column(line, mistake.At), mistake)
			}
			if slices.ContainsFunc(t.Names(), func(name string) bool { return strings.HasPrefix(name, "ref.") }) {
				wrong("template", "line %d, column %d: has a placeholder {ref.…}, but a body must be the same at every attempt: make it a field, as in compute: {entry: ref.external_id}, and write {fields.entry}",
					number, column(line, "{ref."))
			}
			parsed.lines = append(parsed.lines, t)
		}
	default:
		wrong("kind", "%q is not one of json, list, form, template, none", b.Kind)
	}
	if parsed.kind != jsonBody || len(b.Omit) > 0 {
		settings := append([]string{parsed.kind}, b.Omit...)
		if isTemplate {
			settings = append(settings, b.Template, cmp.Or(b.Escape, escapeOf(b.ContentType)))
		}
		parsed.shape = route.Shape(settings...)
	}
	return parsed, errors.Join(errs...)
}

// column is where text begins in line, 1 for the first character.
func column(line, text string) int {
	before, _, _ := strings.Cut(line, text)
	return 1 + utf8.RuneCountInString(before)
}

func validType(contentType string) bool {
	_, _, err := mime.ParseMediaType(contentType)
	return err == nil && strings.Contains(contentType, "/")
}

// escapeOf is the escaping that values need in a document of this type, empty if it is
// not known.
func escapeOf(contentType string) string {
	media, _, _ := mime.ParseMediaType(contentType)
	switch {
	case media == "text/xml", media == "application/xml", strings.HasSuffix(media, "+xml"):
		return "xml"
	case media == "application/json", strings.HasSuffix(media, "+json"):
		return "json"
	case media == "text/calendar":
		return "calendar"
	case media == "application/x-www-form-urlencoded":
		return "form"
	case media == "text/plain":
		return "none"
	}
	return ""
}

var escapes = map[string]func(string) (string, error){
	"xml":      escapeXML,
	"json":     escapeJSON,
	"calendar": escapeCalendar,
	"form":     func(s string) (string, error) { return url.QueryEscape(s), nil },
	"none":     func(s string) (string, error) { return s, nil },
}

var xmlReplacer = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;", "\r", "&#13;", "\n", "&#10;", "\t", "&#9;")

// escapeXML escapes a value of an element or an attribute.
func escapeXML(s string) (string, error) {
	for i, r := range s {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return "", fmt.Errorf("has a character that XML does not allow (%U) at byte %d", r, i)
		}
	}
	return xmlReplacer.Replace(s), nil
}

// escapeJSON writes the inside of a JSON string.
func escapeJSON(s string) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return "", errors.New("cannot be written as JSON")
	}
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(b.String(), "\n"), `"`), `"`), nil
}

var calendarReplacer = strings.NewReplacer(`\`, `\\`, ";", `\;`, ",", `\,`, "\r\n", `\n`, "\n", `\n`, "\r", `\n`)

// escapeCalendar writes a value of type TEXT (RFC 5545, 3.3.11).
func escapeCalendar(s string) (string, error) {
	s = calendarReplacer.Replace(s)
	for i, r := range s {
		if r < ' ' && r != '\t' || r == 0x7f {
			return "", fmt.Errorf("has a control character (%U) at byte %d", r, i)
		}
	}
	return s, nil
}

// maxLine is the longest line of a calendar without its end, in bytes (RFC 5545, 3.1).
const maxLine = 75

// foldLine writes a content line. It never divides a character.
func foldLine(b *strings.Builder, line string) {
	line = strings.TrimRight(line, "\r\n")
	for room := maxLine; len(line) > room; room = maxLine - 1 {
		end := room
		for end > 0 && !utf8.RuneStart(line[end]) {
			end--
		}
		b.WriteString(line[:end] + "\r\n ")
		line = line[end:]
	}
	b.WriteString(line + "\r\n")
}

// fields are the mapped fields that the body names.
func (b body) fields() []string {
	names := slices.Clone(b.omit)
	for _, line := range b.lines {
		names = append(names, line.Fields()...)
	}
	return names
}

// render writes the body of a message. Its errors show no value.
func (b body) render(v *placeholder.Values) ([]byte, error) {
	if b.kind == noBody {
		return nil, nil
	}
	if b.kind == templateBody {
		return b.template(v)
	}
	fields := v.Msg.Body
	if len(b.omit) > 0 {
		var err error
		if fields, err = without(fields, b.omit); err != nil {
			return nil, err
		}
	}
	switch b.kind {
	case listBody:
		return slices.Concat([]byte("["), fields, []byte("]")), nil
	case formBody:
		return form(fields)
	}
	return fields, nil
}

func (b body) template(v *placeholder.Values) ([]byte, error) {
	var text strings.Builder
	for _, line := range b.lines {
		filled, err := line.Fill(func(name string) (string, error) {
			value, err := v.Get(name)
			if err != nil && !errors.Is(err, placeholder.ErrEmpty) {
				return "", err
			}
			return b.escape(value)
		})
		switch {
		case errors.Is(err, placeholder.ErrLeftOut):
		case err != nil:
			return nil, err
		case b.fold:
			foldLine(&text, filled)
		default:
			text.WriteString(filled)
		}
	}
	return []byte(text.String()), nil
}

// member is one member of a JSON object, with its value as it was written.
type member struct {
	name  string
	value json.RawMessage
}

// membersOf returns the members of an object in their order.
func membersOf(object []byte) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(object))
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') {
		return nil, errors.New("the fields are not a JSON object")
	}
	var members []member
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, errors.New("the fields are not a JSON object")
		}
		m := member{name: name.(string)}
		if err := d.Decode(&m.value); err != nil {
			return nil, errors.New("the fields are not a JSON object")
		}
		members = append(members, m)
	}
	return members, nil
}

// without returns a JSON object without the members at some dotted paths. An object that
// becomes empty is left out too.
func without(object []byte, paths []string) ([]byte, error) {
	members, err := membersOf(object)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for _, m := range members {
		var inside []string
		if slices.Contains(paths, m.name) {
			continue
		}
		for _, path := range paths {
			if rest, ok := strings.CutPrefix(path, m.name+"."); ok {
				inside = append(inside, rest)
			}
		}
		if len(inside) > 0 && m.value[0] == '{' {
			if m.value, err = without(m.value, inside); err != nil {
				return nil, err
			}
			if len(m.value) == len("{}") {
				continue
			}
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		name, err := escapeJSON(m.name)
		if err != nil {
			return nil, err
		}
		b.WriteString(`"` + name + `":`)
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// form writes an object as application/x-www-form-urlencoded. A list is written as a field
// for each of its values.
func form(object []byte) ([]byte, error) {
	members, err := membersOf(object)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, m := range members {
		var value any
		d := json.NewDecoder(bytes.NewReader(m.value))
		d.UseNumber()
		if err := d.Decode(&value); err != nil {
			return nil, errors.New("the fields are not a JSON object")
		}
		values, ok := value.([]any)
		if !ok {
			values = []any{value}
		}
		for _, value := range values {
			text, err := placeholder.Text(value)
			if err != nil {
				return nil, fmt.Errorf("field %s %w, which a form cannot have: map its parts to fields of their own", adapters.Clean(m.name, 100), err)
			}
			if b.Len() > 0 {
				b.WriteByte('&')
			}
			b.WriteString(url.QueryEscape(m.name) + "=" + url.QueryEscape(text))
		}
	}
	return b.Bytes(), nil
}
