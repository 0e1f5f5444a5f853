package soap

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// knownName reports whether a template may use a value of that name. item reports
// whether it is inside an element with lockstep:each.
func knownName(name string, item bool) bool {
	return (placeholder.Any(name) || item && itemName(name)) && !strings.Contains(name, "?")
}

// listName reports whether name can be a list: a field of the message or the item.
func listName(name string, item bool) bool {
	return (placeholder.Field(name) || item && itemName(name)) && !strings.Contains(name, "?")
}

func itemName(name string) bool {
	path, below := strings.CutPrefix(name, "item.")
	return name == "item" || below && !strings.Contains("."+path+".", "..")
}

// values are the values of the placeholders for one message.
type values struct {
	message *placeholder.Values
	item    any // of the innermost lockstep:each
}

func newValues(msg adapters.Message) values {
	return values{message: &placeholder.Values{Msg: msg}}
}

// get returns the value of a placeholder, [placeholder.ErrNotKnown] if it is
// missing or null.
func (v values) get(name string) (any, error) {
	switch {
	case placeholder.Field(name):
		return v.message.Lookup(name)
	case name == "item":
		if v.item == nil {
			return nil, placeholder.ErrNotKnown
		}
		return v.item, nil
	case itemName(name):
		return placeholder.Below(v.item, strings.TrimPrefix(name, "item."))
	}
	return v.message.Get(name)
}

// list returns the items of a list. A missing optional list has no items.
func (v values) list(name string, optional bool) ([]any, error) {
	value, err := v.get(name)
	if optional && errors.Is(err, placeholder.ErrNotKnown) {
		return nil, nil
	}
	items, ok := value.([]any)
	if err == nil && !ok {
		err = errors.New("is not a list")
	}
	if err != nil {
		return nil, fmt.Errorf("lockstep:each: %s %w", name, err)
	}
	return items, nil
}

// text returns the text of a placeholder. It refuses text that XML cannot have.
func (v values) text(name string) (string, error) {
	value, err := v.get(name)
	if err != nil {
		return "", err
	}
	text, err := placeholder.Text(value)
	if err != nil {
		return "", err
	}
	return text, xmlText(text)
}
