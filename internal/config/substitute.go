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

// maxSecretSize is the largest size of a file that ${file:…} names, in bytes.
const maxSecretSize = 64 << 10

var (
	dollars      = regexp.MustCompile(`\$\$|(?s)\$\{[^}]*\}?`)
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// substitution replaces the ${…} in scalars.
type substitution struct {
	env    func(string) (string, bool)
	read   func(path string, limit int64) ([]byte, error)
	values []string // the values of all ${…}, so that no message repeats them
}

// replace returns text with each ${…} replaced, and each $$ changed to a single dollar.
// A dollar before any other character stays. values are the values of the ${…}, or nil
// if there is none. Errors name the variable or file, never a value.
func (s *substitution) replace(text string) (out string, values []string, err error) {
	out = dollars.ReplaceAllStringFunc(text, func(found string) string {
		if found == "$$" || err != nil {
			return "$"
		}
		var value string
		if value, err = s.lookup(found[2:]); err == nil {
			values = append(values, value)
			if value != "" && !slices.Contains(s.values, value) {
				s.values = append(s.values, value)
			}
		}
		return value
	})
	if err != nil {
		return "", nil, err
	}
	return out, values, nil
}

// lookup returns the value of what follows ${.
func (s *substitution) lookup(reference string) (string, error) {
	body, closed := strings.CutSuffix(reference, "}")
	if !closed {
		return "", errors.New("a ${ has no closing brace: write ${NAME}, or $${ for the characters themselves")
	}
	if path, ok := strings.CutPrefix(body, "file:"); ok {
		return s.secret(path)
	}
	name, fallback, hasFallback := strings.Cut(body, ":-")
	if !variableName.MatchString(name) {
		return "", errors.New("this ${…} does not name a variable: write ${NAME}, ${NAME:-default} or ${file:/path}, and $${ for the characters themselves")
	}
	value, ok := s.env(name)
	switch {
	case ok && !utf8.ValidString(value):
		return "", fmt.Errorf("the environment variable %s is not UTF-8: set it to text in UTF-8", name)
	case hasFallback && value == "":
		return fallback, nil
	case !ok:
		return "", fmt.Errorf("the environment variable %s is not set: set it, or write ${%s:-default}", name, name)
	}
	return value, nil
}

// secret reads a file, without the byte-order mark and the line end that editors
// add.
func (s *substitution) secret(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("${file:%s} is not an absolute path: write ${file:/path/to/file}", path)
	}
	b, err := s.read(path, maxSecretSize)
	switch {
	case err != nil:
		return "", fmt.Errorf("${file:%s} cannot be read: %w; check that it exists and that this user may read it", path, err)
	case len(b) > maxSecretSize:
		return "", fmt.Errorf("${file:%s} is larger than 64 KiB: name a file that has only the value", path)
	case !utf8.Valid(b):
		return "", fmt.Errorf("${file:%s} is not UTF-8: save it as UTF-8", path)
	}
	return strings.TrimRight(strings.TrimPrefix(string(b), "\uFEFF"), "\r\n"), nil
}

// readFile reads a file up to one byte more than limit. Its errors do not have the
// path, which the caller adds.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	var b []byte
	if err == nil {
		defer func() { _ = f.Close() }()
		b, err = io.ReadAll(io.LimitReader(f, limit+1))
	}
	if p, ok := errors.AsType[*os.PathError](err); ok {
		err = p.Err
	}
	return b, err
}
