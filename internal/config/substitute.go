package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxSecretSize bounds a file that ${file:…} names.
const maxSecretSize = 64 << 10

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// substitution puts values from outside into scalars.
type substitution struct {
	env    func(string) (string, bool)
	values []string // what was put in, so that no message repeats it
}

// replace returns text with ${…} replaced and $$ made a single dollar. A dollar
// in front of anything else stands for itself; put is what was put in, nil if
// nothing was replaced. Errors name the variable or file, never a value.
func (s *substitution) replace(text string) (out string, put []string, err error) {
	if !strings.Contains(text, "$") {
		return text, nil, nil
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(text, '$')
		if i < 0 || i == len(text)-1 {
			b.WriteString(text)
			return b.String(), put, nil
		}
		b.WriteString(text[:i])
		switch text[i+1] {
		case '$':
			b.WriteByte('$')
			text = text[i+2:]
		case '{':
			body, rest, closed := strings.Cut(text[i+2:], "}")
			if !closed {
				return "", nil, errors.New("a ${ has no closing brace: write ${NAME}, or $${ for the characters themselves")
			}
			value, err := s.lookup(body)
			if err != nil {
				return "", nil, err
			}
			put = append(put, value)
			s.remember(value)
			b.WriteString(value)
			text = rest
		default:
			b.WriteByte('$')
			text = text[i+1:]
		}
	}
}

func (s *substitution) remember(value string) {
	if value != "" && !slices.Contains(s.values, value) {
		s.values = append(s.values, value)
	}
}

func (s *substitution) lookup(body string) (string, error) {
	if path, ok := strings.CutPrefix(body, "file:"); ok {
		return readSecret(path)
	}
	name, fallback, hasFallback := strings.Cut(body, ":-")
	if !variableName.MatchString(name) {
		return "", errors.New("this ${…} names no variable: write ${NAME}, ${NAME:-default} or ${file:/path}, and $${ for the characters themselves")
	}
	value, ok := s.env(name)
	switch {
	case ok && !utf8.ValidString(value):
		return "", fmt.Errorf("the environment variable %s is not UTF-8", name)
	case hasFallback && value == "":
		return fallback, nil
	case !ok:
		return "", fmt.Errorf("the environment variable %s is not set: set it, or write ${%s:-default}", name, name)
	}
	return value, nil
}

// readSecret reads a file and trims the line end that editors add.
func readSecret(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("${file:%s} is not an absolute path: write ${file:/path/to/file}", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("${file:%s} cannot be read: %w; check that it exists and that this user may read it", path, cause(err))
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxSecretSize+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("${file:%s} cannot be read: %w", path, cause(err))
	case len(b) > maxSecretSize:
		return "", fmt.Errorf("${file:%s} is larger than 64 KiB: it is not a secret", path)
	case !utf8.Valid(b):
		return "", fmt.Errorf("${file:%s} is not UTF-8", path)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// cause leaves out the path, which the message names already.
func cause(err error) error {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		return p.Err
	}
	return err
}
