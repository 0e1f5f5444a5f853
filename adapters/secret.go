package adapters

import (
	"fmt"
	"io"
	"log/slog"
)

// mask is what a set secret shows of itself.
const mask = "***"

// Secret is a credential in a configuration. It is read like a string and
// cannot print itself: fmt, log/slog, JSON, YAML and XML all show "***", or
// nothing when it is empty. Reveal gives the value to the code that sends it.
//
// fmt cannot call methods of unexported fields: keep a Secret in exported
// fields only, or inside a function.
type Secret string

// Reveal returns the value itself.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return mask
}

// GoString implements [fmt.GoStringer].
func (s Secret) GoString() string { return fmt.Sprintf("adapters.Secret(%q)", s.String()) }

// Format implements [fmt.Formatter], so that no verb shows the value, a wrong
// one such as %d included.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'v' && f.Flag('#') {
		text = s.GoString()
	}
	_, _ = io.WriteString(f, text)
}

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements [encoding.TextMarshaler].
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON implements [encoding/json.Marshaler].
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// MarshalYAML gives YAML encoders the mask.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }
