package soap

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// maxEnvelope bounds an envelope, in bytes. A message has at most 1 MiB, but a template
// can repeat its fields for each item of a list.
const maxEnvelope = 16 << 20

// maxItems bounds how often elements are repeated in one envelope. maxEnvelope is not
// enough, because lists in lists can be long and write nothing.
const maxItems = 1 << 20

var (
	escapeText = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#xD;")
	escapeAttr = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "\t", "&#x9;", "\n", "&#xA;", "\r", "&#xD;")
)

// writer writes elements. It escapes all text.
type writer struct {
	bytes.Buffer
	items int // of all lists so far
}

func (w *writer) raw(s string) { w.WriteString(s) }

func (w *writer) text(s string) { _, _ = escapeText.WriteString(w, s) }

func (w *writer) attr(tag, value string) {
	w.raw(" " + tag + `="`)
	_, _ = escapeAttr.WriteString(w, value)
	w.raw(`"`)
}

// element writes an element of text only; attrs are names and values in turn.
func (w *writer) element(tag, text string, attrs ...string) {
	w.raw("<" + tag)
	for i := 0; i+1 < len(attrs); i += 2 {
		w.attr(attrs[i], attrs[i+1])
	}
	w.raw(">")
	w.text(text)
	w.raw("</" + tag + ">")
}

// render writes t once, or as often as lockstep:each says.
func (t *template) render(w *writer, v values) error {
	if t.each == "" {
		return t.renderOne(w, v)
	}
	items, err := v.list(t.each, t.ifThere)
	if err != nil {
		return err
	}
	if w.items += len(items); w.items > maxItems {
		return fmt.Errorf("lockstep:each: %s: the lists of the envelope have more than %d items", t.each, maxItems)
	}
	for _, v.item = range items {
		if err := t.renderOne(w, v); err != nil {
			return err
		}
	}
	return nil
}

// renderOne writes t, unless lockstep:if or a missing optional value leaves it out.
func (t *template) renderOne(w *writer, v values) error {
	if t.when != "" {
		if _, err := v.get(t.when); errors.Is(err, placeholder.ErrNotKnown) {
			return nil
		} else if err != nil {
			return fmt.Errorf("lockstep:if: %s %w", t.when, err)
		}
	}
	texts := make([]string, len(t.children))
	for i, c := range t.children {
		if c.element == nil {
			text, err := c.text.Fill(v.text)
			if errors.Is(err, placeholder.ErrLeftOut) {
				return nil
			} else if err != nil {
				return err
			}
			texts[i] = text
		}
	}
	w.raw("<" + t.tag)
	for _, a := range t.attrs {
		value, err := a.value.Fill(v.text)
		if errors.Is(err, placeholder.ErrLeftOut) {
			continue
		} else if err != nil {
			return err
		}
		w.attr(a.tag, value)
	}
	w.raw(">")
	for i, c := range t.children {
		if c.element == nil {
			w.text(texts[i])
		} else if err := c.element.render(w, v); err != nil {
			return err
		}
	}
	w.raw("</" + t.tag + ">")
	if w.Len() > maxEnvelope {
		return fmt.Errorf("the envelope gets longer than %d bytes", maxEnvelope)
	}
	return nil
}
