package config

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxPaths is how many paths escalate.at may have, as in the table outbox.sync.
const maxPaths = 8

func (p *Paths) decode(d *decoder, n *node) *yaml.Node {
	var all []string
	one := n.kind == kindText
	items := n.items
	switch {
	case one:
		items = []*node{n}
	case n.kind != kindList:
		return d.wrong(n, "a path such as scheduledAt, or a list of paths")
	case len(items) == 0:
		d.at(n, "is empty: name a path such as scheduledAt, or remove the key")
		return nil
	case len(items) > maxPaths:
		d.at(n, "has %d paths: keep at most %d", len(items), maxPaths)
		return nil
	}
	out := &yaml.Node{Kind: yaml.SequenceNode}
	for _, item := range items {
		var path string
		s := d.text("", item, reflect.ValueOf(&path).Elem())
		if s == nil {
			continue
		}
		switch {
		case path == "" || slices.Contains(strings.Split(path, "."), ""):
			d.at(item, "%s is not a path: write the names of objects and of the field with dots between them, such as hearing.scheduledAt", d.quote(item))
		case slices.Contains(all, path):
			d.at(item, "is in the list already: remove it")
		}
		all = append(all, path)
		out.Content = append(out.Content, s)
	}
	*p = all
	if one && len(out.Content) == 1 {
		return out.Content[0]
	}
	return out
}

func (p *Paths) schema() map[string]any {
	path := textSchema(`pattern:"^[^.]+([.][^.]+)*$"`)
	return map[string]any{"anyOf": []any{path, map[string]any{"type": "array", "minItems": 1, "maxItems": maxPaths, "uniqueItems": true, "items": path}}}
}

// checkEscalate refuses a bound on a time that is never read.
func (d *decoder) checkEscalate(n *node, e Escalate) {
	if at := n.at("escalate"); e.Before > 0 && at.at("at").kind == kindAbsent {
		d.at(at.at("before"), "needs at: name where the payload has the time, such as at: scheduledAt")
	}
}
