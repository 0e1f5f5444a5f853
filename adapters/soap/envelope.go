package soap

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// operation is the form in which messages of some types are sent.
type operation struct {
	url        *endpoint.URL
	version    string
	action     string
	namespaces []string // prefixes and URIs in turn, of the whole envelope
	header     []*template
	body       *template // nil if these types have no operation
	addressing *Addressing
	shape      string // of the settings of the body, see [adapters.Shaper]
}

// write writes the envelope of one attempt. token is nil without security.
func (o operation) write(v values, u *url.URL, t *token) ([]byte, error) {
	w := new(writer)
	w.raw(`<?xml version="1.0" encoding="UTF-8"?>` + "\n<soap:Envelope")
	for i := 0; i < len(o.namespaces); i += 2 {
		w.attr("xmlns:"+o.namespaces[i], o.namespaces[i+1])
	}
	w.raw(">\n")
	if t != nil || o.addressing != nil || len(o.header) > 0 {
		w.raw("<soap:Header>\n")
		if o.addressing != nil {
			o.addressing.write(w, v.message.Msg.IdempotencyKey, o.action, u)
		}
		if t != nil {
			t.write(w, o.version)
		}
		for _, block := range o.header {
			if err := block.render(w, v); err != nil {
				return nil, fmt.Errorf("header: %w", err)
			}
			w.raw("\n")
		}
		w.raw("</soap:Header>\n")
	}
	w.raw("<soap:Body>\n")
	if err := o.body.render(w, v); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	w.raw("\n</soap:Body>\n</soap:Envelope>\n")
	return w.Bytes(), nil
}

// literals returns the texts of the templates that are not from data.
func (o operation) literals() []string {
	all := o.body.literals()
	for _, block := range o.header {
		all = append(all, block.literals()...)
	}
	return all
}

// contentType returns the media type of an envelope. The action is plain ASCII
// without quotes.
func (o operation) contentType() string {
	if o.version != Version12 {
		return "text/xml; charset=utf-8"
	}
	if o.action == "" {
		return "application/soap+xml; charset=utf-8"
	}
	return `application/soap+xml; charset=utf-8; action="` + o.action + `"`
}

// parseOperations reads the operations of the configuration.
func parseOperations(c Config, known *scope) (route.Table[operation], error) {
	var errs []error
	check := func(field string, err error) {
		for _, e := range exchange.Flatten(err) {
			errs = append(errs, fmt.Errorf("%s: %w", field, e))
		}
	}
	header, err := parseTemplate(c.Header, known)
	check("header", err)
	for _, block := range header.elements {
		if why := writtenBy(c, block.tag); why != "" {
			check("header", fmt.Errorf("<%s> is written by %s", block.tag, why))
		}
	}
	if c.Addressing != nil {
		if err := xmlText(c.Addressing.To); err != nil {
			check("addressing.to", err)
		}
	}
	parse := func(field string, own, r Route) operation {
		o := operation{version: c.Version, action: r.Action, header: header.elements, addressing: c.Addressing}
		if own.Action != "" {
			check(field+"action", checkAction(r.Action))
		}
		if c.Addressing != nil && r.Action == "" {
			check(field+"action", errors.New("is required by addressing"))
		}
		var err error
		o.url, err = endpoint.ParseURL(r.URL)
		if own.URL != "" {
			check(field+"url", err)
		}
		if r.Body == "" {
			return o
		}
		body, err := parseOperation(r.Body, known)
		if own.Body != "" {
			check(field+"body", err)
		}
		if err == nil {
			o.body = body.elements[0]
		}
		o.namespaces = namespaces(c, known, header, body)
		o.shape = route.Shape(append([]string{o.version, r.Body}, o.namespaces...)...)
		return o
	}
	whole := Route{Action: c.Action, Body: c.Body, URL: c.URL}
	var fallback operation
	switch {
	case c.URL == "":
		errs = append(errs, errors.New("url: is required"))
	case c.Body == "" && len(c.Routes) == 0:
		errs = append(errs, errors.New("body: is required: write the element of the operation"))
	case c.Body == "": // the routes have it
		check("action", checkAction(c.Action))
		fallback.url, err = endpoint.ParseURL(c.URL)
		check("url", err)
	default:
		fallback = parse("", whole, whole)
	}
	routes := map[string]operation{}
	for _, pattern := range slices.Sorted(maps.Keys(c.Routes)) {
		own := c.Routes[pattern]
		field := fmt.Sprintf("routes[%q].", pattern)
		r := Route{Action: cmp.Or(own.Action, c.Action), Body: cmp.Or(own.Body, c.Body), URL: cmp.Or(own.URL, c.URL)}
		switch {
		case pattern == "":
			errs = append(errs, errors.New(`routes[""]: name an event type, or a pattern such as "scheduling:*"`))
		case own == Route{}:
			errs = append(errs, fmt.Errorf("%saction, %[1]sbody, %[1]surl: set at least one of action, body and url", field))
		case r.Body == "":
			errs = append(errs, fmt.Errorf("%sbody: is required here, because there is no body for all types", field))
		case r.URL == "": // reported above
		default:
			routes[pattern] = parse(field, own, r)
		}
	}
	return route.New(routes, fallback), errors.Join(errs...)
}

// writtenBy returns the option that writes a header block of that name, or "".
func writtenBy(c Config, tag string) string {
	switch {
	case tag == "wsse:Security" && c.Security.Kind != NoSecurity:
		return "security"
	case slices.Contains([]string{"wsa:MessageID", "wsa:Action", "wsa:To"}, tag) && c.Addressing != nil:
		return "addressing"
	}
	return ""
}

// namespaces returns the declarations of an envelope: soap, those configured, and
// those of the specifications that it uses.
func namespaces(c Config, known *scope, parts ...compiled) []string {
	prefixes := map[string]bool{"soap": true}
	for prefix := range c.Namespaces {
		prefixes[prefix] = true
	}
	for _, part := range parts {
		maps.Copy(prefixes, part.prefixes)
	}
	if c.Security.Kind != NoSecurity {
		prefixes["wsse"], prefixes["wsu"] = true, true
	}
	if c.Addressing != nil {
		prefixes["wsa"] = true
	}
	delete(prefixes, "xml")
	var all []string
	for _, prefix := range slices.Sorted(maps.Keys(prefixes)) {
		uri, _ := known.lookup(prefix)
		all = append(all, prefix, uri)
	}
	return all
}

// checkAction allows what a quoted string of a header can hold: the ASCII of URIs.
func checkAction(action string) error {
	if i := strings.IndexFunc(action, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }); i >= 0 {
		return errors.New("is not a URI: it has a space, a quote, a backslash, or a character that is not printable ASCII")
	}
	return nil
}
