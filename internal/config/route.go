package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// routeParts are the mapping and the computed fields of a route of an adapter. They are in
// the adapter's section of the file, but the relay applies them.
type routeParts struct {
	fields  Fields
	compute Compute
}

// routePart decodes n if v marks a part of a route: see [adapters.Mapped].
func (d *decoder) routePart(n *node, v reflect.Value) (*yaml.Node, bool) {
	isFields, isCompute := v.Type() == reflect.TypeFor[adapters.Mapped](), v.Type() == reflect.TypeFor[adapters.Computed]()
	if !isFields && !isCompute {
		return nil, false
	}
	v.SetBool(true)
	if d.routes == nil {
		d.routes = map[string]*routeParts{}
	}
	parts := d.routes[n.parent.path]
	if parts == nil {
		parts = &routeParts{}
		d.routes[n.parent.path] = parts
	}
	if isFields {
		return parts.fields.decode(d, n), true
	}
	return parts.compute.decode(d, n), true
}

// shortField returns the field that a text alone gives to a struct.
func shortField(t reflect.Type) (reflect.StructField, bool) {
	for _, f := range fieldsOf(t) {
		if f.Tag.Get("short") != "" {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// checkRoutes compiles the mappings of an adapter's routes, and checks each route against
// its mapping. made are the fields of the sync's own mapping.
func (d *decoder) checkRoutes(n *node, s *Sync, routes []adapters.Route, made []string) {
	fields := map[string][]string{} // made by the mappings of routes, by their names
	reported := map[string]bool{}   // a route has the headers of those above it too
	at := func(r adapters.Route) *node { return n.at("adapter").at(r.Keys...) }
	for _, r := range routes {
		if parts := d.routes[at(r).path]; parts != nil {
			m := mapping.Mapping{Fields: parts.fields, Compute: parts.compute}
			if s.Routes == nil {
				s.Routes = map[string]mapping.Mapping{}
			}
			s.Routes[r.Name], fields[r.Name] = m, d.compileMapping(at(r), m)
			d.checkLearned(at(r), m, s.Adapter.Adapter)
		}
	}
	for _, r := range routes {
		if _, ok := s.Routes[r.Name]; !ok {
			if own, ok := s.Routes[r.Parent]; ok {
				s.Routes[r.Name], fields[r.Name] = own, fields[r.Parent]
			} else {
				fields[r.Name] = made
			}
		}
		d.checkFields(at(r), slices.DeleteFunc(slices.Clone(r.Fields), func(name string) bool {
			id := fmt.Sprint(name, fields[r.Name])
			defer func() { reported[id] = true }()
			return reported[id]
		}), fields[r.Name])
		if i := slices.IndexFunc(fields[r.Name], func(to string) bool { return strings.Contains(to, ".") }); r.Flat && i >= 0 {
			d.at(at(r), "the body is a form, which has no objects, but the mapping makes the field %s: write its name without a dot", fields[r.Name][i])
		}
	}
}
