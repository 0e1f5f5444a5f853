package config

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// routeFile is a sync with routes; %s is put below the route for cancellations.
const routeFile = `
syncs:
  - name: S
    events: ["h:*"]
    adapter:
      kind: rest
      url: https://court.example.gov/{fields.id}
      external_id: /id
      known: {method: PUT}
      routes:
        "h:cancelled":
          method: DELETE
ROUTE
    mapping: {a: id}
    compute: {title: {expr: event.title, optional: true}}
`

func TestMappingsOfRoutes(t *testing.T) {
	f, err := Parse("t.yaml", []byte(strings.Replace(routeFile, "ROUTE", `
          compute: {id: key, entry: ref.external_id ?? "none", at: occurred_at, event: id, why: {expr: event.why}}
          known: {method: POST, mapping: {a: id}}`, 1)), docEnv)
	if err != nil {
		t.Fatal(err)
	}
	s := f.RelayConfig().Syncs[0]
	got := map[string]string{}
	for _, typ := range []string{"h:updated", "h:cancelled"} {
		for _, id := range []string{"", "7"} {
			e := outbox.Event{ID: "e-1", Type: typ, Key: "k", Payload: []byte(`{"a":1,"why":"WD"}`)}
			m, _, err := s.Mapper(adapters.Message{Type: typ, Ref: adapters.Ref{ExternalID: id}})
			if err != nil {
				t.Fatal(err)
			}
			body, err := m.Map(e, mapping.Sending{Ref: outbox.Ref{ExternalID: id}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			got[typ+" "+id] = string(body)
		}
	}
	want := map[string]string{
		"h:updated ": `{"id":1}`, "h:updated 7": `{"id":1}`,
		"h:cancelled ": `{"id":"k","entry":"none","at":"","event":"e-1","why":"WD"}`, "h:cancelled 7": `{"id":1}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bodies (-want +got):\n%s", diff)
	}
	var printed strings.Builder
	if err := f.Print(&printed, false); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(printed.String(), "ref.external_id ??") {
		t.Errorf("the computed field of the route is not printed:\n%s", printed.String())
	}
}

// A mistake of a route has the position of that route.
func TestMistakesOfRoutes(t *testing.T) {
	for route, want := range map[string]string{
		"          compute: {x: event.}":                                                              "t.yaml:13:24: syncs[0].adapter.routes[\"h:cancelled\"].compute.x: the expression does not compile",
		"          mapping: {a: {to: x, zone: y}}":                                                    "routes[\"h:cancelled\"].mapping.a.zone: is not a known key",
		"          mapping: {b: reason}":                                                              "routes[\"h:cancelled\"]: uses {fields.id}, but the mapping does not make this field: use one of its fields (reason)",
		"          body: {kind: form}\n          mapping: {a: id, b: c.d}":                            "routes[\"h:cancelled\"]: the body is a form, which has no objects, but the mapping makes the field c.d",
		"          body: {omit: [room]}":                                                              "routes[\"h:cancelled\"]: uses {fields.room}, but the mapping does not make this field",
		"          known: {body: {kind: template, content_type: text/xml, template: \"{fields.b}\"}}": "routes[\"h:cancelled\"].known.body.template: uses {fields.b}, but the mapping does not make this field",
		"          body: xml":                                                                         "routes[\"h:cancelled\"].body: \"xml\" is not one of json, list, form, template, none",
		"          if_match: yes please":                                                              "if_match: \"yes please\" is not one of true, false, weak",
		"          external_id: \"\"":                                                                 "t.yaml:13:24: syncs[0].adapter.routes[\"h:cancelled\"].external_id: is empty: write a JSON Pointer such as /id, or remove the key; a route whose answers are not about the record has reference: keep",
		"          external_id: {value: \"{fields.nr}\"}":                                             "routes[\"h:cancelled\"].external_id.value: uses {fields.nr}, but the mapping does not make this field",
		"          learn: {n: /n}\n          compute: {id: ref.m ?? ref.n}":                           "t.yaml:14:25: syncs[0].adapter.routes[\"h:cancelled\"].compute.id: no key learn has the name \"m\", so ref.m would always be null; known are ref.external_id, ref.etag, ref.n",
		"          body: null":                                                                        "t.yaml:13:17: syncs[0].adapter.routes[\"h:cancelled\"].body: has no value: write json, list, form, template, none, or a section (keys and values), or remove the key",
		"          mapping: null":                                                                     "t.yaml:13:20: syncs[0].adapter.routes[\"h:cancelled\"].mapping: has no value: write a section of source fields",
		"          compute: ~":                                                                        "routes[\"h:cancelled\"].compute: has no value: write a section of target fields",
		"          headers:":                                                                          "routes[\"h:cancelled\"].headers: has no value: write a section (keys and values), or remove the key",
		"          outcomes: {404: }":                                                                 "routes[\"h:cancelled\"].outcomes.404: has no value: write text",
		"          answers: null":                                                                     "routes[\"h:cancelled\"].answers: has no value: write a list, each entry after a -, or remove the key",
		"          external_id: null":                                                                 "routes[\"h:cancelled\"].external_id: has no value: write text, or a section (keys and values), or remove the key",
		"          known: null":                                                                       "routes[\"h:cancelled\"].known: has no value: write a section (keys and values), or remove the key",
		"        \"h:updated\": null":                                                                 "routes[\"h:updated\"]: has no value: write a section (keys and values), or remove the key",
		"          without_id: fail":                                                                  "routes[\"h:cancelled\"].without_id: \"fail\" is not possible: only skip is",
		"          reference: drop":                                                                   "reference: \"drop\" is not one of update, keep, forget",
		"        \"h:updated\": {headers: {X: x}}":                                                    "t.yaml:13:22: syncs[0].adapter.routes[\"h:updated\"]: known is above and not here",
		"          known: {}":                                                                         "t.yaml:13:18: syncs[0].adapter.routes[\"h:cancelled\"].known: is empty: set method, url or another key, or remove known",
		"          gone: create":                                                                      "gone: is not a known key",
		"          external_id: [a]":                                                                  "external_id: is a list, but must be text, or a section (keys and values)",
		"          learn: {n: {head: X}}":                                                             "learn.n.head: is not a known key",
	} {
		_, err := Parse("t.yaml", []byte(strings.Replace(routeFile, "ROUTE", route, 1)), docEnv)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", route, err, want)
		}
	}
}

// Placeholders and the mapping write the same time in the same format alike.
func TestFormatsOfPlaceholdersAreThoseOfMappings(t *testing.T) {
	const at = "2027-03-15T13:30:07.25Z"
	for _, format := range []string{"RFC3339", "RFC3339Milli", "RFC3339Micro", "RFC3339Nano", "date", "basic", "hl7"} {
		text := strings.NewReplacer("https://court.example.gov/{fields.id}", "https://court.example.gov/{occurred_at:"+format+"}", "ROUTE", "",
			"{a: id}", "{at: {to: at, time: {zone: UTC, format: "+format+"}}}").Replace(routeFile)
		f, err := Parse("t.yaml", []byte(text), docEnv)
		if err != nil {
			t.Fatal(err)
		}
		s := f.RelayConfig().Syncs[0]
		m, _, err := s.Mapper(adapters.Message{})
		if err != nil {
			t.Fatal(err)
		}
		body, err := m.Map(outbox.Event{Payload: []byte(`{"at":"` + at + `"}`)}, mapping.Sending{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Adapter.(adapters.Previewer).Preview(adapters.Message{IdempotencyKey: "e-1", OccurredAt: parseTime(t, at), Body: body})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := p.URL, "https://court.example.gov/"+strings.Trim(strings.TrimPrefix(string(body), `{"at":`), `"}`); got != want {
			t.Errorf("%s: placeholder %s, mapping %s", format, got, want)
		}
	}
}

func parseTime(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// A relay warns of an event whose type is spelt almost like one of these.
func TestNamesOfTypes(t *testing.T) {
	f := parseYAML(t, `
syncs:
  - name: R
    events: ["h:*"]
    adapter:
      kind: rest
      url: https://court.example.gov/
      routes: {"h:cancelled": {method: DELETE}, "h:moved*": {method: PUT}}
  - name: S
    events: ["h:*"]
    adapter: {kind: soap, url: "https://court.example.gov/", body: "<a/>", routes: {"h:cancelled": {body: "<b/>"}}}
  - name: W
    events: ["h:*"]
    adapter: {kind: webhook, url: "https://court.example.gov/", secrets: ["whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="], types: {"h:cancelled": removed}}
`)
	for _, s := range f.RelayConfig().Syncs {
		if diff := cmp.Diff([]string{"h:cancelled"}, s.TypeNames); diff != "" {
			t.Errorf("%s: -want +got\n%s", s.Name, diff)
		}
	}
}

// Two settings of an adapter have the same shape if and only if they make the same bodies.
func TestShapesOfBodies(t *testing.T) {
	const court = `url: "https://court.example.gov/{fields.b}", `
	for kind, settings := range map[string][]string{
		"rest": {
			court + `method: POST`,
			court + `method: PUT, headers: {X: y}`,
			court + `body: list`,
			court + `body: {kind: list, content_type: application/vnd.court+json}`,
			court + `body: form`,
			court + `body: none`,
			court + `body: {omit: [b]}`,
			court + `body: {kind: template, content_type: text/plain, template: "{fields.b}"}`,
			court + `body: {kind: template, content_type: text/xml, template: "{fields.b}"}`,
			court + `body: {kind: template, content_type: text/xml, template: "<b>{fields.b}</b>"}`,
			court + `routes: {"h:*": {body: list}}`,
			court + `known: {method: PUT, body: list}`,
		},
		"webhook": {
			`url: "https://court.example.gov/", secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]`,
			`url: "https://other.example.gov/", payload: standard, secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSx"]`,
			court + `secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], types: {"h:*": moved}`,
			court + `secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], types: {"h:other": moved}`,
			court + `secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], payload: fields`,
			court + `secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], payload: cloudevents_structured, source: /a`,
			court + `secrets: ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], payload: cloudevents_structured, source: /b`,
		},
		"soap": {
			court + `body: "<a>{fields.b}</a>"`,
			court + `body: "<a>{fields.b}</a>", action: urn:a`,
			court + `body: "<a>{key}</a>"`,
			court + `body: "<a>{fields.b}</a>", version: "1.2"`,
			court + `body: "<c:a xmlns:c='urn:c'>{fields.b}</c:a>"`,
			court + `body: "<a>{fields.b}</a>", routes: {"h:*": {body: "<u/>"}}`,
		},
	} {
		type made struct{ shape, body, by string }
		var all []made
		for _, setting := range settings {
			f := parseYAML(t, "\nsyncs:\n  - name: S\n    events: [\"h:*\"]\n    adapter: {kind: "+kind+", "+setting+"}\n    mapping: {a: b, c: d}\n")
			adapter := f.RelayConfig().Syncs[0].Adapter
			msg := adapters.Message{ID: "e-1", IdempotencyKey: "e-1", Type: "h:moved", Key: "H-1", Body: []byte(`{"b":"<&","d":2}`)}
			p, err := adapter.(adapters.Previewer).Preview(msg)
			if err != nil {
				t.Fatalf("%s: %v", setting, err)
			}
			all = append(all, made{adapter.(adapters.Shaper).Shape(msg), string(p.Body), setting})
		}
		for i, a := range all {
			for _, b := range all[:i] {
				if (a.shape == b.shape) != (a.body == b.body) {
					t.Errorf("%s: shapes %q and %q of\n%s\n%s\nbodies:\n%s\n%s", kind, a.shape, b.shape, a.by, b.by, a.body, b.body)
				}
			}
		}
	}
}
