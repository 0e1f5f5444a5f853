package placeholder

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
)

const (
	fieldPrefix = "fields."
	refPrefix   = "ref."
)

// Names are the placeholders that a text may have. The zero value knows those that every
// message has a value for.
type Names struct {
	Learned []string // names of learnt values: {ref.NAME}
}

// plainNames are the placeholders of every message, in the order in which messages list
// them. {occurred_at} may have a format, as in {occurred_at:RFC3339Milli}.
var plainNames = []string{"id", "idempotency_key", "type", "key", "version", "occurred_at", "ref.external_id", "ref.etag"}

// Timed are the formats of {occurred_at:FORMAT}, and their layouts. The time is in UTC.
// The mapping knows the same formats by the same names.
var Timed = map[string]string{
	"RFC3339":      time.RFC3339,
	"RFC3339Milli": "2006-01-02T15:04:05.000Z07:00",
	"RFC3339Micro": "2006-01-02T15:04:05.000000Z07:00",
	"RFC3339Nano":  time.RFC3339Nano,
	"date":         time.DateOnly,
	"basic":        "20060102T150405Z0700",
	"hl7":          "20060102150405-0700",
}

const timedPrefix = "occurred_at:"

// Known reports whether name is one of n.
func (n Names) Known(name string) bool {
	if format, ok := strings.CutPrefix(name, timedPrefix); ok {
		return Timed[format] != ""
	}
	learned, ok := strings.CutPrefix(name, refPrefix)
	return slices.Contains(plainNames, name) || Field(name) || ok && slices.Contains(n.Learned, learned)
}

// String lists the names for people.
func (n Names) String() string {
	var b strings.Builder
	for _, name := range plainNames {
		b.WriteString("{" + name + "}, ")
	}
	for _, name := range n.Learned {
		b.WriteString("{" + refPrefix + name + "}, ")
	}
	return b.String() + "{fields.NAME} for a mapped field"
}

// Field reports whether name is {fields.NAME}; a dotted NAME reaches into objects.
func Field(name string) bool {
	field, ok := strings.CutPrefix(name, fieldPrefix)
	return ok && !strings.Contains("."+field+".", "..")
}

// Any reports whether every message has a value for the placeholder.
func Any(name string) bool { return Names{}.Known(name) }

// hint is added to a message about an unknown placeholder.
func (n Names) hint(name string) string {
	learned, ref := strings.CutPrefix(name, refPrefix)
	format, timed := strings.CutPrefix(name, timedPrefix)
	switch {
	case ref:
		return fmt.Sprintf(": no key learn has the name %q; known are %s", learned, n)
	case timed:
		return fmt.Sprintf(": %q is not one of the formats %s", format, strings.Join(slices.Sorted(maps.Keys(Timed)), ", "))
	}
	return "; known are " + n.String()
}

// Values are the values of the placeholders for one message. Use one for all texts
// of an attempt. It is not safe for concurrent use.
type Values struct {
	Msg    adapters.Message
	fields map[string]any // decoded when first needed
}

// ErrNotKnown says that the message has no such value.
var ErrNotKnown = errors.New("is not known")

// ErrEmpty says that the value of a field is an empty text. Only the text of a body may have
// it: a URL or a header without its value would mean something else.
var ErrEmpty = errors.New("is empty")

// errNoField is ErrNotKnown for {fields.NAME}. The usual mistake is to write the
// payload's name of a field, not its mapped name.
var errNoField = fmt.Errorf("%w: the mapped fields have none of this name, or null", ErrNotKnown)

// SetID says what a person can do if the id of a key's record is not known.
const SetID = "set it with lockstep ref set, then requeue"

// ErrNoID is ErrNotKnown for {ref.external_id}. It says what a person can do.
var ErrNoID = fmt.Errorf("%w: no answer of the receiver contained the id of this key's record; %s", ErrNotKnown, SetID)

// notLearned is ErrNotKnown for {ref.etag} and {ref.NAME}. option sets the value.
func notLearned(option string) error {
	return fmt.Errorf("%w: no answer of the receiver contained it; set it with lockstep ref set %s, then requeue", ErrNotKnown, option)
}

// Get returns the value of a placeholder. Its errors do not repeat values.
func (v *Values) Get(name string) (string, error) {
	var value string
	switch name {
	case "ref.external_id":
		if value = v.Msg.Ref.ExternalID; value == "" {
			return "", ErrNoID
		}
	case "ref.etag":
		if value = v.Msg.Ref.ETag; value == "" {
			return "", notLearned("--etag")
		}
	case "idempotency_key":
		value = v.Msg.IdempotencyKey
	case "key":
		value = v.Msg.Key
	case "id":
		value = v.Msg.ID
	case "type":
		value = v.Msg.Type
	case "version":
		if v.Msg.Version != nil {
			value = strconv.FormatInt(*v.Msg.Version, 10)
		}
	case "occurred_at":
		value = v.occurredAt("RFC3339Nano")
	default:
		if learned, ok := strings.CutPrefix(name, refPrefix); ok {
			if value = v.Msg.Ref.Learned[learned]; value == "" {
				return "", notLearned("--learned " + learned + "=VALUE")
			}
			break
		}
		if format, ok := strings.CutPrefix(name, timedPrefix); ok {
			value = v.occurredAt(format)
			break
		}
		at, err := v.Lookup(name)
		if err != nil {
			return "", err
		}
		if value, err = Text(at); err != nil {
			return "", err
		}
		if value == "" {
			return "", ErrEmpty
		}
		return value, nil
	}
	if value == "" {
		return "", ErrNotKnown
	}
	return value, nil
}

func (v *Values) occurredAt(format string) string {
	if v.Msg.OccurredAt.IsZero() {
		return ""
	}
	return v.Msg.OccurredAt.UTC().Format(Timed[format])
}

// Lookup returns the value of {fields.NAME}, or [ErrNotKnown] if it is missing or null.
func (v *Values) Lookup(name string) (any, error) {
	if v.fields == nil {
		fields, err := v.Msg.Fields()
		if err != nil {
			return nil, errors.New("cannot be read: the body is not a JSON object")
		}
		v.fields = fields
	}
	value, err := Below(v.fields, strings.TrimPrefix(name, fieldPrefix))
	if errors.Is(err, ErrNotKnown) {
		return nil, errNoField
	}
	return value, err
}

// Below returns the value at a dotted path in a decoded JSON value.
func Below(at any, path string) (any, error) {
	for name := range strings.SplitSeq(path, ".") {
		object, _ := at.(map[string]any)
		at = object[name]
	}
	if at == nil {
		return nil, ErrNotKnown
	}
	return at, nil
}

// Text writes a decoded JSON value, unless it is an object or a list.
func Text(value any) (string, error) {
	switch value := value.(type) {
	case string:
		return value, nil
	case json.Number:
		return value.String(), nil
	case bool:
		return strconv.FormatBool(value), nil
	case nil:
		return "", ErrNotKnown
	default:
		return "", errors.New("is an object or a list")
	}
}

// Plain refuses control characters and invalid UTF-8, which identifiers and header
// values do not have on purpose. Its error does not repeat the value.
func Plain(value string) error {
	if !utf8.ValidString(value) {
		return errors.New("is not valid UTF-8")
	}
	for i, r := range value {
		if unicode.IsControl(r) {
			return fmt.Errorf("has a control character (%U) at byte %d", r, i)
		}
	}
	return nil
}
