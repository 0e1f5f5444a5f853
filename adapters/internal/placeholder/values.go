package placeholder

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
)

const fieldPrefix = "fields."

// Address reports whether name identifies something and so is allowed in a URL:
// {ref.external_id}, {key}, {id}, {version} or {fields.NAME}.
func Address(name string) bool {
	switch name {
	case "ref.external_id", "key", "id", "version":
		return true
	}
	return Field(name)
}

// Field reports whether name is {fields.NAME}; a dotted NAME reaches into objects.
func Field(name string) bool {
	field, ok := strings.CutPrefix(name, fieldPrefix)
	return ok && !strings.Contains("."+field+".", "..")
}

// Any reports whether name is a placeholder at all: those of [Address], {type} and
// {occurred_at}.
func Any(name string) bool {
	return Address(name) || name == "type" || name == "occurred_at"
}

// hint is added to a message about an unknown placeholder. It says how to write a
// field.
func hint(name string) string {
	if Any(name) || strings.HasPrefix(name, fieldPrefix) {
		return ""
	}
	return "; a mapped field is written {fields.NAME}"
}

// Values are the values of the placeholders for one message. Use one for all texts
// of an attempt. It is not safe for concurrent use.
type Values struct {
	Msg    adapters.Message
	fields map[string]any // decoded when first needed
}

// ErrNotKnown says that the message has no such value.
var ErrNotKnown = errors.New("is not known")

// errNoField is ErrNotKnown for {fields.NAME}. The usual mistake is to write the
// payload's name of a field, not its mapped name.
var errNoField = fmt.Errorf("%w: the mapped fields have none of this name, or null", ErrNotKnown)

// errNoID is ErrNotKnown for {ref.external_id}. It says what a person can do.
var errNoID = fmt.Errorf("%w: no answer of the receiver contained the id of this key's record; set it with lockstep ref set, then requeue", ErrNotKnown)

// Get returns the value of a placeholder. Its errors do not repeat values.
func (v *Values) Get(name string) (string, error) {
	var value string
	switch name {
	case "ref.external_id":
		if value = v.Msg.Ref.ExternalID; value == "" {
			return "", errNoID
		}
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
		if !v.Msg.OccurredAt.IsZero() {
			value = v.Msg.OccurredAt.UTC().Format(time.RFC3339Nano)
		}
	default:
		at, err := v.Lookup(name)
		if err != nil {
			return "", err
		}
		if value, err = Text(at); err != nil {
			return "", err
		}
		if value == "" {
			return "", errors.New("is empty")
		}
		return value, nil
	}
	if value == "" {
		return "", ErrNotKnown
	}
	return value, nil
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
