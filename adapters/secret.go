package adapters

import (
	"fmt"
	"io"
	"log/slog"
	"regexp"
)

// mask is printed instead of a secret that is not empty.
const mask = "***"

// sensitive matches names whose values are probably credentials.
var sensitive = regexp.MustCompile(`(?i)auth|token|secret|passw|key|cookie|signature|credential`)

// Sensitive reports whether a header or a configuration key of this name probably has a
// credential.
func Sensitive(name string) bool { return sensitive.MatchString(name) }

var sensitiveParameter = regexp.MustCompile(`(?i)([?&][^=&#\s]*(?:auth|token|secret|passw|key|signature|sig)[^=&#\s]*=)[^&#\s]*`)

// MaskQuery takes the values of parameters whose names say that they are credentials out of
// a text that is, or contains, a URL.
func MaskQuery(text string) string {
	return sensitiveParameter.ReplaceAllString(text, "${1}"+mask)
}

// Secret is a credential in a configuration. It is read like a string, but does not
// print its value: fmt, log/slog, JSON, YAML and XML show "***", or nothing if it is
// empty. The code that sends it calls Reveal.
//
// Keep a Secret in exported fields only, or inside a function: fmt cannot call the
// methods of an unexported field, and prints its value.
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

// Format implements [fmt.Formatter], so that no verb shows the value, not even a wrong
// one such as %d.
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
