package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"

	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// pointer is a JSON Pointer (RFC 6901); nil points nowhere.
type pointer []string

func parsePointer(s string) (pointer, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] != '/' {
		return nil, errors.New("is not a JSON Pointer: start it with / as in /id")
	}
	var p pointer
	for token := range strings.SplitSeq(s[1:], "/") {
		rest := strings.NewReplacer("~0", "", "~1", "").Replace(token)
		if strings.Contains(rest, "~") {
			return nil, errors.New("is not a JSON Pointer: write ~ as ~0, and / inside a name as ~1")
		}
		p = append(p, strings.NewReplacer("~1", "/", "~0", "~").Replace(token))
	}
	return p, nil
}

// find returns the string, or the digits of the number, that p points to. It finds
// nothing in an incomplete answer. It ignores values that cannot be stored or sent
// back, because they are empty, too long or have control characters.
func (p pointer) find(ans exchange.Answer) (string, bool) {
	if p == nil || ans.Partial {
		return "", false
	}
	var at any
	d := json.NewDecoder(bytes.NewReader(ans.Body))
	d.UseNumber()
	if err := d.Decode(&at); err != nil {
		return "", false
	}
	for _, name := range p {
		switch container := at.(type) {
		case map[string]any:
			at = container[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(container) || strconv.Itoa(i) != name {
				return "", false
			}
			at = container[i]
		default:
			return "", false
		}
	}
	var id string
	switch v := at.(type) {
	case string:
		id = v
	case json.Number:
		id = v.String()
	}
	return id, exchange.IsRef(id)
}
