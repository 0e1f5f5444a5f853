package rest_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

// A route is chosen by event type and by whether the id is known. It has what it leaves out
// from above, and adds headers.
func TestRouteByWhatIsKnown(t *testing.T) {
	c := newCourt(t)
	entry := c.URL + "/h/{ref.external_id}"
	a := newAdapter(t, rest.Config{
		URL: c.URL + "/h", Headers: map[string]adapters.Secret{"X-Source": "AGENCY", "X-Kind": "top", "X-Create": "only"},
		Known: &rest.Known{Request: rest.Request{Method: "PUT", URL: entry, Headers: map[string]adapters.Secret{"x-kind": "known", "X-Create": ""}}},
		Routes: map[string]rest.Route{
			"*:created": {Request: rest.Request{Method: "POST", Headers: map[string]adapters.Secret{"If-None-Match": "*"}}},
			"*:cancelled": {
				Request: rest.Request{Method: "DELETE", Body: rest.Body{Kind: "none"}, Headers: map[string]adapters.Secret{"X-Kind": "route"}},
				Known:   &rest.Known{Request: rest.Request{URL: entry + "/v/{ref.version}", Headers: map[string]adapters.Secret{"X-Why": "{ref.etag}"}}},
			},
		},
		Learn: map[string]rest.Source{"version": {Path: "/version"}},
	})
	known := adapters.Ref{ExternalID: "7", ETag: `"v3"`, Learned: map[string]string{"version": "4"}}
	for _, tc := range []struct {
		event string
		ref   adapters.Ref
		route string
		want  string
	}{
		{"h:updated", adapters.Ref{}, "", `POST /h top   application/json {"a":1}`},
		{"h:updated", known, "known", `PUT /h/7 known   application/json {"a":1}`},
		{"h:created", known, "*:created", `POST /h top *  application/json {"a":1}`},
		{"h:cancelled", adapters.Ref{}, "*:cancelled", "DELETE /h route    "},
		{"h:cancelled", known, "*:cancelled/known", `DELETE /h/7/v/4 route  "v3"  `},
	} {
		msg := adapters.Message{ID: "e-1", IdempotencyKey: "e-1", Type: tc.event, Key: "k", Body: []byte(`{"a":1}`), Ref: tc.ref}
		if _, err := a.Deliver(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		h := c.request.Header
		got := strings.Join([]string{c.request.Method, c.request.URL.Path, h.Get("X-Kind"), h.Get("If-None-Match"), h.Get("X-Why"), h.Get("Content-Type"), c.sent}, " ")
		if got != tc.want || a.Route(msg) != tc.route || h.Get("X-Source") != "AGENCY" || (h["X-Create"] == nil) != (tc.route == "known") {
			t.Errorf("%s by route %q:\ngot  %s\nwant %s", tc.event, a.Route(msg), got, tc.want)
		}
	}
}

// Statuses mean what the route says: 404 after DELETE is a duplicate, and after PUT it is not.
func TestOutcomesOfARoute(t *testing.T) {
	c := newCourt(t)
	c.body = `{"title":"no such hearing"}`
	known := func(gone string, outcomes map[int]string) *rest.Known {
		return &rest.Known{Request: rest.Request{Method: "PUT", Outcomes: outcomes}, Gone: gone}
	}
	for name, tc := range map[string]struct {
		known  *rest.Known
		event  string
		status int
		body   string
		class  adapters.Class
		forget bool
	}{
		"DELETE":                   {event: "h:cancelled", status: 404, class: adapters.ClassDuplicate},
		"DELETE, inherited":        {event: "h:cancelled", status: 409, class: adapters.ClassTransient},
		"PUT":                      {status: 404, class: adapters.ClassPermanent},
		"gone":                     {known: known("create", nil), status: 404, class: adapters.ClassConflict, forget: true},
		"gone for good":            {known: known("create", nil), status: 410, class: adapters.ClassConflict, forget: true},
		"gone, but another status": {known: known("create", nil), status: 422, class: adapters.ClassPermanent},
		"a gateway":                {known: known("create", nil), status: 404, body: "default backend - 404", class: adapters.ClassUnexplained},
		"a bare 404 is meant":      {known: known("create", map[int]string{404: "permanent"}), status: 404, body: " ", class: adapters.ClassConflict, forget: true},
	} {
		c.status, c.body = tc.status, `{"title":"no such hearing"}`
		if tc.body != "" {
			c.body = tc.body
		}
		if tc.known == nil {
			tc.known = known("", nil)
		}
		a := newAdapter(t, rest.Config{
			URL: c.URL, Outcomes: map[int]string{409: "transient"}, Known: tc.known,
			Routes: map[string]rest.Route{"h:cancelled": {Request: rest.Request{Method: "DELETE", Outcomes: map[int]string{404: "duplicate"}}}},
		})
		msg := message()
		if tc.event != "" {
			msg.Type = tc.event
		}
		receipt, err := a.Deliver(t.Context(), msg)
		class := adapters.ClassOf(err)
		if receipt.Duplicate {
			class = adapters.ClassDuplicate
		}
		forgets := receipt.Ref != nil && cmp.Equal(*receipt.Ref, adapters.Ref{})
		if class != tc.class || forgets != tc.forget {
			t.Errorf("%s: class %s, reference %+v, %v", name, class, receipt.Ref, err)
		}
	}
}

func TestBodies(t *testing.T) {
	c := newCourt(t)
	const fields = `{"b":"x & <y>","n":1.50,"where":{"room":"3,A","court":"NY"},"tags":["p","q"],"long":"` +
		`a; b` + `","quote":"say \"hi\"\n"}`
	for name, tc := range map[string]struct {
		body   rest.Body
		fields string
		want   string
		is     string // Content-Type
		err    string
	}{
		"json":          {fields: `{"a":1}`, want: `{"a":1}`, is: "application/json"},
		"its type":      {body: rest.Body{ContentType: "application/fhir+json"}, fields: `{"a":1}`, want: `{"a":1}`, is: "application/fhir+json"},
		"omit":          {body: rest.Body{Omit: []string{"b", "where.room", "tags", "long", "quote"}}, fields: fields, want: `{"n":1.50,"where":{"court":"NY"}}`, is: "application/json"},
		"omit a whole":  {body: rest.Body{Omit: []string{"w.a"}}, fields: `{"w":{"a":1},"x":2}`, want: `{"x":2}`, is: "application/json"},
		"list":          {body: rest.Body{Kind: "list"}, fields: `{"a":1}`, want: `[{"a":1}]`, is: "application/json"},
		"form":          {body: rest.Body{Kind: "form"}, fields: `{"a b":"x&y","n":1.50,"t":["p","q"],"yes":true}`, want: "a+b=x%26y&n=1.50&t=p&t=q&yes=true", is: "application/x-www-form-urlencoded"},
		"nested form":   {body: rest.Body{Kind: "form"}, fields: fields, err: "body: field where is an object or a list, which a form cannot have"},
		"none":          {body: rest.Body{Kind: "none"}, fields: fields},
		"xml":           {body: rest.Body{Kind: "template", ContentType: "application/xml", Template: "<h id='{id}'>\n<b>{fields.b}</b>\n<c>{fields.nope?}</c>\n</h>"}, fields: fields, want: "<h id='e-1'>\n<b>x &amp; &lt;y&gt;</b>\n</h>", is: "application/xml"},
		"json template": {body: rest.Body{Kind: "template", ContentType: "application/json", Template: `{"h":{"q":"{fields.quote}","n":{fields.n}},"at":"{occurred_at:RFC3339Milli}","k":"{idempotency_key}"}`}, fields: fields, want: `{"h":{"q":"say \"hi\"\n","n":1.50},"at":"2027-03-01T14:30:00.000Z","k":"e-1"}`, is: "application/json"},
		"empty":         {body: rest.Body{Kind: "template", ContentType: "text/xml", Template: "<b>{fields.b}</b>\n<c>{fields.b?}</c>"}, fields: `{"b":""}`, want: "<b></b>\n<c></c>", is: "text/xml"},
		"plain":         {body: rest.Body{Kind: "template", ContentType: "text/plain", Template: "{fields.b}"}, fields: fields, want: "x & <y>", is: "text/plain"},
		"another type":  {body: rest.Body{Kind: "template", ContentType: "application/x-court", Escape: "xml", Template: "{fields.b}"}, fields: fields, want: "x &amp; &lt;y&gt;", is: "application/x-court"},
		"not in XML":    {body: rest.Body{Kind: "template", ContentType: "text/xml", Template: "<a>{fields.b}</a>"}, fields: `{"b":"\u0001"}`, err: "body: {fields.b} has a character that XML does not allow (U+0001) at byte 0"},
		"missing":       {body: rest.Body{Kind: "template", ContentType: "text/xml", Template: "<a>{fields.nope}</a>"}, fields: fields, err: "body: {fields.nope} is not known"},
		"calendar": {
			body: rest.Body{Kind: "template", ContentType: "text/calendar; charset=utf-8", Template: "BEGIN:VEVENT\nLOCATION:{fields.where.room}\nSUMMARY:{fields.s}\nDESCRIPTION:{fields.d?}\nEND:VEVENT\n"},
			// The 75th byte is inside of a character.
			fields: `{"where":{"room":"3,A; B\\C"},"s":"` + strings.Repeat("x", 66) + "é" + strings.Repeat("y", 75) + `\nz"}`,
			want:   "BEGIN:VEVENT\r\nLOCATION:3\\,A\\; B\\\\C\r\nSUMMARY:" + strings.Repeat("x", 66) + "\r\n é" + strings.Repeat("y", 72) + "\r\n yyy\\nz\r\nEND:VEVENT\r\n",
			is:     "text/calendar; charset=utf-8",
		},
	} {
		t.Run(name, func(t *testing.T) {
			msg := message()
			msg.Body = []byte(tc.fields)
			_, err := newAdapter(t, rest.Config{URL: c.URL, Body: tc.body}).Deliver(t.Context(), msg)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || adapters.ClassOf(err) != adapters.ClassPermanent {
					t.Fatalf("got %v, want %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, c.sent); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if got := c.request.Header.Get("Content-Type"); got != tc.is {
				t.Errorf("Content-Type %q, want %q", got, tc.is)
			}
			for line := range strings.SplitSeq(c.sent, "\r\n") {
				if strings.HasPrefix(tc.is, "text/calendar") && len(line) > 75 {
					t.Errorf("a line has %d bytes", len(line))
				}
			}
		})
	}
}

func TestSources(t *testing.T) {
	for name, tc := range map[string]struct {
		from  rest.Source
		value string
		want  string
	}{
		"Location":               {rest.Source{Header: "location"}, "https://court.example/hearings/C%2F7?x=1", "C/7"},
		"Location, relative":     {rest.Source{Header: "Location"}, "/hearings/7/", "7"},
		"Location of a version":  {rest.Source{Header: "Location", Match: "/Appointment/([^/]+)"}, "https://fhir.example/Appointment/123/_history/1", "123"},
		"another header":         {rest.Source{Header: "X-Entry"}, "a/b c", "a/b c"},
		"a part of it":           {rest.Source{Header: "X-Entry", Match: "^id=(.*)$"}, "id=7", "7"},
		"no match":               {rest.Source{Header: "X-Entry", Match: "^id=(.*)$"}, "7", ""},
		"no header":              {rest.Source{Header: "X-Entry"}, "", ""},
		"no path":                {rest.Source{Header: "Location"}, "https://court.example", ""},
		"not a URL":              {rest.Source{Header: "Location"}, "https://%zz/7", ""},
		"a control character":    {rest.Source{Header: "Location"}, "/hearings/a%00b", ""},
		"longer than it may be":  {rest.Source{Header: "Location"}, "/hearings/" + strings.Repeat("x", adapters.MaxRef+1), ""},
		"the longest that it is": {rest.Source{Header: "Location"}, "/hearings/" + strings.Repeat("x", adapters.MaxRef), strings.Repeat("x", adapters.MaxRef)},
	} {
		c := newCourt(t)
		if tc.value != "" {
			c.header.Set(tc.from.Header, tc.value)
		}
		a := newAdapter(t, rest.Config{URL: c.URL, ExternalID: tc.from, Learn: map[string]rest.Source{"too": tc.from}, Require: "nothing"})
		msg := message()
		msg.Ref = adapters.Ref{}
		receipt, err := a.Deliver(t.Context(), msg)
		if err != nil {
			t.Fatal(err)
		}
		var got adapters.Ref
		if receipt.Ref != nil {
			got = *receipt.Ref
		}
		if got.ExternalID != tc.want || got.Learned["too"] != tc.want {
			t.Errorf("%s: learnt %+v, want %q", name, got, tc.want)
		}
	}
}

// What an answer leaves out stays as it was.
func TestLearntValuesStay(t *testing.T) {
	c := newCourt(t)
	a := newAdapter(t, rest.Config{URL: c.URL, Learn: map[string]rest.Source{"version": {Path: "/version"}, "status": {Path: "/status"}}})
	msg := message()
	msg.Ref = adapters.Ref{Learned: map[string]string{"version": "1", "status": "new"}}
	c.body = `{"version":2}`
	receipt, err := a.Deliver(t.Context(), msg)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"version": "2", "status": "new"}, receipt.Ref.Learned); diff != "" {
		t.Errorf("learnt (-want +got):\n%s", diff)
	}
	if got := msg.Ref.Learned["version"]; got != "1" {
		t.Errorf("the message's own reference has now %s", got)
	}
}

// FHIR servers compare weak ETags.
func TestWeakETagIsSentIfConfigured(t *testing.T) {
	c := newCourt(t)
	a := newAdapter(t, rest.Config{URL: c.URL, IfMatch: "weak"})
	for _, tag := range []string{`W/"2"`, `"2"`} {
		m := message()
		m.Ref.ETag = tag
		if _, err := a.Deliver(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if got := c.request.Header.Get("If-Match"); got != tag {
			t.Errorf("sent If-Match %q, want %q", got, tag)
		}
	}
}

func TestRoutesThatAreRefused(t *testing.T) {
	route := func(r rest.Request) map[string]rest.Route { return map[string]rest.Route{"a": {Request: r}} }
	body := func(b rest.Body) rest.Config { return rest.Config{Body: b} }
	many := map[string]rest.Source{}
	for i := range adapters.MaxLearned + 1 {
		many[strings.Repeat("x", i+1)] = rest.Source{Path: "/x"}
	}
	for _, tc := range []struct {
		want string
		c    rest.Config
	}{
		{`routes["a"].headers["Host"]: cannot be set`, rest.Config{Routes: route(rest.Request{Headers: map[string]adapters.Secret{"Host": "x"}})}},
		{`routes["a"].headers["X"]: {ref.n} is not a placeholder that is allowed`, rest.Config{Routes: route(rest.Request{Headers: map[string]adapters.Secret{"X": "{ref.n}"}})}},
		{`no key learn has the name "n"; known are {id}, {idempotency_key}`, rest.Config{URL: "https://x/{ref.n}"}},
		{`routes["a"].outcomes.1: is not a status`, rest.Config{Routes: route(rest.Request{Outcomes: map[int]string{1: "auth"}})}},
		{`routes["a"].answers[0].class: "fine"`, rest.Config{Routes: route(rest.Request{Answers: []adapters.Answer{{Class: "fine"}}})}},
		{`routes["a"].external_id: name either path`, rest.Config{Routes: route(rest.Request{ExternalID: rest.Source{Path: "/x", Header: "X"}})}},
		{`routes["a"].learn["n"].match: is not a regular expression with one group`, rest.Config{Routes: route(rest.Request{Learn: map[string]rest.Source{"n": {Header: "X", Match: "x"}}})}},
		{`external_id.match: belongs to header`, rest.Config{ExternalID: rest.Source{Path: "/x", Match: "(x)"}}},
		{`external_id.header: "a b" is not the name of a header`, rest.Config{ExternalID: rest.Source{Header: "a b"}}},
		{`learn["etag"]: may have only letters, digits and _, and must not be external_id or etag`, rest.Config{Learn: map[string]rest.Source{"etag": {Path: "/x"}}}},
		{`learn["a.b"]: may have only`, rest.Config{Learn: map[string]rest.Source{"a.b": {Path: "/x"}}}},
		{`learn: has 17 names`, rest.Config{Learn: many}},
		{`if_match: "strong" is not true, false, weak or any`, rest.Config{IfMatch: "strong"}},
		{`known: is empty: set method`, rest.Config{Known: &rest.Known{}}},
		{`routes["a"].known: is empty: set method`, rest.Config{Routes: map[string]rest.Route{"a": {Request: rest.Request{Method: "PUT"}, Known: &rest.Known{}}}}},
		{
			`routes["a"]: known is above and not here, so this would be sent as new for a hearing that the receiver has: write known or method here`,
			rest.Config{Known: &rest.Known{Request: rest.Request{Method: "PUT"}}, Routes: route(rest.Request{Headers: map[string]adapters.Secret{"X": "x"}})},
		},
		{`headers["if-match"]: cannot be set, it is sent by Lockstep itself: use if_match`, rest.Config{Headers: map[string]adapters.Secret{"if-match": "*"}}},
		{`reference: "drop" is not update, keep or forget`, rest.Config{Reference: "drop"}},
		{`routes["a"].require: does not go with reference: keep`, rest.Config{Routes: route(rest.Request{ExternalID: rest.Source{Path: "/id"}, Require: "external_id", Reference: "keep"})}},
		{`external_id.value: does not go with path`, rest.Config{ExternalID: rest.Source{Path: "/id", Value: "{key}"}}},
		{`external_id.value: has a placeholder {ref.…}`, rest.Config{ExternalID: rest.Source{Value: "{ref.external_id}"}}},
		{`external_id.value: {court} is not a placeholder`, rest.Config{ExternalID: rest.Source{Value: "{court}"}}},
		{`learn["n"].value: belongs to external_id`, rest.Config{Learn: map[string]rest.Source{"n": {Value: "{key}"}}}},
		{`known.gone: "delete" is not create`, rest.Config{Known: &rest.Known{Request: rest.Request{Method: "PUT"}, Gone: "delete"}}},
		{`known.method: "GET" cannot carry a message`, rest.Config{Known: &rest.Known{Request: rest.Request{Method: "GET"}}}},
		{`body.kind: "text" is not one of json, list, form, template, none`, body(rest.Body{Kind: "text"})},
		{`body.template: is required for kind template`, body(rest.Body{Kind: "template"})},
		{`body.content_type: is required for kind template`, body(rest.Body{Kind: "template", Template: "x"})},
		{`body.escape: is required for this content_type`, body(rest.Body{Kind: "template", Template: "x", ContentType: "application/x"})},
		{`body.template: belongs to kind template`, body(rest.Body{Template: "x"})},
		{`body.escape: belongs to kind template`, body(rest.Body{Escape: "xml"})},
		{`body.omit: belongs to the kinds`, body(rest.Body{Kind: "none", Omit: []string{"x"}})},
		{`body.content_type: does not belong to kind none`, body(rest.Body{Kind: "none", ContentType: "text/xml"})},
		{`body.content_type: is not a media type`, body(rest.Body{ContentType: "xml"})},
		{`body.template: line 1, column 1: has a placeholder {ref.…}`, body(rest.Body{Kind: "template", ContentType: "text/xml", Template: "{ref.etag}"})},
		{`body.template: line 1, column 1: {court} is not a placeholder that is allowed here; known`, body(rest.Body{Kind: "template", ContentType: "text/xml", Template: "{court}"})},
		{`{occurred_at:x} is not a placeholder that is allowed here: "x" is not one of the formats RFC3339, RFC3339Micro`, rest.Config{URL: "https://x/{occurred_at:x}"}},
		{`allow.hosts: * would send the headers of routes`, rest.Config{
			URL: "https://{fields.a}.example/", Allow: adapters.Allow{Hosts: []string{"*"}}, Routes: route(rest.Request{Headers: map[string]adapters.Secret{"X": "x"}}),
		}},
	} {
		c := tc.c
		if c.URL == "" {
			c.URL = "https://court.example.gov/"
		}
		if _, err := rest.New(c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got  %v\nwant %s", err, tc.want)
		}
	}
}

// Each route says which mapped fields it uses, for the check of the configuration.
func TestFieldsOfRoutes(t *testing.T) {
	a := newAdapter(t, rest.Config{
		URL: "https://court.example.gov/{fields.a}", Headers: map[string]adapters.Secret{"X": "{fields.b}"},
		Known: &rest.Known{Request: rest.Request{URL: "https://court.example.gov/", Headers: map[string]adapters.Secret{"X": "x"}, Body: rest.Body{Kind: "form", Omit: []string{"c"}}}},
	})
	got := map[string]string{}
	for _, r := range a.Routes() {
		got[r.Name] = strings.Join(slices.Sorted(slices.Values(r.Fields)), " ")
		if r.Flat != (r.Name == "known") {
			t.Errorf("route %q: flat %v", r.Name, r.Flat)
		}
	}
	if want := map[string]string{"": "a b", "known": "c"}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A request about a part of the record leaves the reference as it is, and one that removes
// the record forgets it.
func TestReferenceOfARoute(t *testing.T) {
	known := adapters.Ref{ExternalID: "7", ETag: `"v1"`, Learned: map[string]string{"n": "1"}}
	forgotten := &adapters.Ref{Version: new(int64(4))}
	for name, tc := range map[string]struct {
		reference, require, gone string
		status                   int
		ref                      adapters.Ref
		want                     *adapters.Ref
		class                    adapters.Class
	}{
		"keep, and no ETag":            {reference: "keep", status: 204, ref: known},
		"keep, and the part's id":      {reference: "keep", status: 201, ref: known},
		"keep, and no id yet":          {reference: "keep", status: 204},
		"keep, and require above":      {reference: "keep", require: "external_id", status: 204},
		"keep, refused":                {reference: "keep", status: 422, ref: known, class: adapters.ClassPermanent},
		"keep, and the record is gone": {reference: "keep", gone: "create", status: 410, ref: known, class: adapters.ClassConflict, want: &adapters.Ref{}},
		"forget":                       {reference: "forget", status: 204, ref: known, want: forgotten},
		"forget a duplicate":           {reference: "forget", status: 409, ref: known, want: forgotten},
		"forget, accepted":             {reference: "forget", status: 202, ref: known, want: forgotten},
		"forget, and the answer's":     {reference: "forget", status: 201, ref: known, want: forgotten},
		"forget, and nothing known":    {reference: "forget", status: 204},
		"forget, refused":              {reference: "forget", status: 422, ref: known, class: adapters.ClassPermanent},
		"update":                       {reference: "update", status: 201, ref: known, want: &adapters.Ref{ExternalID: "part-1", ETag: `"p1"`, Version: new(int64(4)), Learned: map[string]string{"n": "9"}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCourt(t)
			c.status = tc.status
			switch tc.status {
			case 201:
				c.header.Set("Location", "/h/7/parts/part-1")
				c.header.Set("ETag", `"p1"`)
				c.body = `{"n":9}`
			case 410, 422:
				c.body = `{"title":"no"}`
			}
			own := rest.Request{URL: c.URL + "/h/parts", Reference: tc.reference}
			a := newAdapter(t, rest.Config{
				URL: c.URL, ExternalID: rest.Source{Header: "Location"}, Learn: map[string]rest.Source{"n": {Path: "/n"}},
				Require: tc.require, Outcomes: map[int]string{409: "duplicate"},
				Routes: map[string]rest.Route{"*": {Request: own, Known: &rest.Known{Request: rest.Request{Method: "PUT"}, Gone: tc.gone}}},
			})
			msg := message()
			msg.Ref = tc.ref
			receipt, err := a.Deliver(t.Context(), msg)
			if tc.class == "" {
				tc.class = adapters.ClassDelivered
			}
			if got := adapters.ClassOf(err); got != tc.class {
				t.Fatalf("class %s, want %s: %v", got, tc.class, err)
			}
			if diff := cmp.Diff(tc.want, receipt.Ref); diff != "" {
				t.Errorf("reference (-want +got):\n%s", diff)
			}
		})
	}
}

// An id that the sender chooses is known after the first success, and after no failure.
func TestIDThatWeChoose(t *testing.T) {
	c := newCourt(t)
	a := newAdapter(t, rest.Config{
		URL: c.URL + "/h", ExternalID: rest.Source{Value: "h-{key}-{fields.n}"},
		Known: &rest.Known{Request: rest.Request{Method: "PUT", URL: c.URL + "/h/{ref.external_id}"}},
	})
	if got := a.Routes()[0].Fields; !slices.Equal(got, []string{"n"}) {
		t.Errorf("uses the fields %v", got)
	}
	msg := message()
	msg.Ref, msg.Key, msg.Body = adapters.Ref{}, "7", []byte(`{"n":1}`)
	c.status, c.body = 422, `{"title":"no"}`
	if receipt, err := a.Deliver(t.Context(), msg); err == nil || receipt.Ref != nil {
		t.Errorf("%+v, %v", receipt, err)
	}
	c.status, c.body = 202, ""
	receipt, err := a.Deliver(t.Context(), msg)
	if err != nil || receipt.NoID {
		t.Fatalf("%+v, %v", receipt, err)
	}
	if diff := cmp.Diff(&adapters.Ref{ExternalID: "h-7-1", Version: new(int64(4))}, receipt.Ref); diff != "" {
		t.Errorf("reference (-want +got):\n%s", diff)
	}
	msg.Ref = *receipt.Ref
	receipt, err = a.Deliver(t.Context(), msg)
	if got := c.request.Method + " " + c.request.URL.Path; err != nil || receipt.Ref != nil || got != "PUT /h/h-7-1" {
		t.Errorf("%s, %+v, %v", got, receipt, err)
	}
	c.request = nil
	msg.Body = []byte(`{}`)
	_, err = a.Deliver(t.Context(), msg)
	if adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(err.Error(), "nothing was sent: external_id: {fields.n} is not known") || c.request != nil {
		t.Errorf("%v", err)
	}
}

// A receiver may require If-Match, although its answer to a create has no ETag.
func TestIfMatchAny(t *testing.T) {
	c := newCourt(t)
	a := newAdapter(t, rest.Config{
		URL: c.URL, IfMatch: "any", Routes: map[string]rest.Route{"without": {Request: rest.Request{IfMatch: "false"}}},
	})
	for _, tc := range []struct {
		event string
		ref   adapters.Ref
		want  string
	}{
		{"a", adapters.Ref{}, ""},
		{"a", adapters.Ref{ExternalID: "7"}, "*"},
		{"a", adapters.Ref{ExternalID: "7", ETag: `"v1"`}, `"v1"`},
		{"a", adapters.Ref{ExternalID: "7", ETag: `W/"v1"`}, "*"},
		{"without", adapters.Ref{ExternalID: "7"}, ""},
		{"without", adapters.Ref{ExternalID: "7", ETag: `"v1"`}, ""},
	} {
		msg := message()
		msg.Type, msg.Ref = tc.event, tc.ref
		if _, err := a.Deliver(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		if got := c.request.Header.Get("If-Match"); got != tc.want {
			t.Errorf("%s %+v: sent If-Match %q, want %q", tc.event, tc.ref, got, tc.want)
		}
	}
}

// A value that no answer contained can be set by a person.
func TestUnknownReferenceSaysWhatToDo(t *testing.T) {
	a := newAdapter(t, rest.Config{
		URL: "https://court.example.gov/", Learn: map[string]rest.Source{"n": {Path: "/n"}},
		Routes: map[string]rest.Route{
			"n":    {Request: rest.Request{URL: "https://court.example.gov/{ref.n}"}},
			"etag": {Request: rest.Request{Headers: map[string]adapters.Secret{"X": "{ref.etag}"}}},
		},
	})
	for event, option := range map[string]string{"n": "--learned n=VALUE", "etag": "--etag"} {
		msg := message()
		msg.Type, msg.Ref = event, adapters.Ref{ExternalID: "7"}
		_, err := a.Deliver(t.Context(), msg)
		if want := "no answer of the receiver contained it; set it with lockstep ref set " + option + ", then requeue"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A duplicate of the create request says only that the record exists. An update that was sent
// as one has not changed it.
func TestDuplicateWithoutID(t *testing.T) {
	c := newCourt(t)
	known := &rest.Known{Request: rest.Request{Method: "PATCH", URL: c.URL + "/{ref.external_id}"}}
	booked := map[string]rest.Route{"h:booked": {Request: rest.Request{Method: "POST"}}}
	for name, tc := range map[string]struct {
		config rest.Config
		event  string
		ref    string
		body   string
		class  adapters.Class
		learns bool // the id, so that the next attempt updates the record
	}{
		"create":                     {config: rest.Config{Known: known}, class: adapters.ClassConflict},
		"nothing is required":        {config: rest.Config{Known: known, Require: "nothing"}, class: adapters.ClassConflict},
		"no id is read":              {config: rest.Config{Known: known, ExternalID: rest.Source{}}, class: adapters.ClassConflict},
		"the duplicate has the id":   {config: rest.Config{Known: known}, body: `{"id":"7"}`, class: adapters.ClassConflict, learns: true},
		"an id that we choose":       {config: rest.Config{Known: known, ExternalID: rest.Source{Value: "{key}"}}, class: adapters.ClassConflict, learns: true},
		"a duplicate of the update":  {config: rest.Config{Known: known}, ref: "7", class: adapters.ClassDuplicate},
		"new hearings only":          {config: rest.Config{Known: known, Routes: booked}, event: "h:booked", class: adapters.ClassDuplicate},
		"nothing updates":            {config: rest.Config{}, class: adapters.ClassDuplicate},
		"a DELETE of what is gone":   {config: rest.Config{Known: known, Method: "DELETE"}, class: adapters.ClassDuplicate},
		"a part of the whole record": {config: rest.Config{Known: known, Reference: "keep"}, class: adapters.ClassDuplicate},
	} {
		t.Run(name, func(t *testing.T) {
			tc.config.URL, tc.config.Outcomes = c.URL, map[int]string{409: "duplicate"}
			if tc.config.ExternalID == (rest.Source{}) && name != "no id is read" {
				tc.config.ExternalID = rest.Source{Path: "/id"}
			}
			c.status, c.body = 409, tc.body
			msg := message()
			msg.Key, msg.Ref = "7", adapters.Ref{ExternalID: tc.ref}
			if tc.event != "" {
				msg.Type = tc.event
			}
			receipt, err := newAdapter(t, tc.config).Deliver(t.Context(), msg)
			class := adapters.ClassOf(err)
			if receipt.Duplicate {
				class = adapters.ClassDuplicate
			}
			if class != tc.class {
				t.Fatalf("class %s, want %s: %+v, %v", class, tc.class, receipt, err)
			}
			switch {
			case err == nil:
			case receipt.Code != "HTTP 409", !strings.Contains(err.Error(), "has a record for this key"):
				t.Errorf("%+v, %v", receipt, err)
			case tc.learns && (receipt.Ref == nil || receipt.Ref.ExternalID != "7"):
				t.Errorf("it learnt %+v, not the id", receipt.Ref)
			case !tc.learns && (!receipt.NoID || receipt.Ref != nil || !strings.Contains(err.Error(), "but its id is not known")):
				t.Errorf("%+v, %v", receipt, err)
			}
		})
	}
}

// Microsoft Graph has the ETag in the body.
func TestETagOfTheBody(t *testing.T) {
	for name, tc := range map[string]struct {
		from   rest.Source
		match  string
		method string
		status int
		body   string
		want   string
		lacks  bool
	}{
		"as it is":           {from: rest.Source{Path: "/@odata.etag"}, match: "weak", body: `{"@odata.etag":"W/\"a+b=\""}`, want: `W/"a+b="`},
		"without quotes":     {from: rest.Source{Path: "/changeKey"}, match: "true", body: `{"changeKey":"CQAA=="}`, want: `"CQAA=="`},
		"another header":     {from: rest.Source{Header: "X-Version"}, match: "true", want: `"9"`},
		"weak, not sent":     {from: rest.Source{Path: "/e"}, match: "true", body: `{"e":"W/\"1\""}`, want: `W/"1"`, lacks: true},
		"none":               {from: rest.Source{Path: "/e"}, match: "true", lacks: true},
		"not an ETag":        {from: rest.Source{Path: "/e"}, match: "true", body: `{"e":"a \"b"}`, lacks: true},
		"none in the header": {match: "weak", lacks: true},
		"none, but * is":     {match: "any"},
		"none is needed":     {match: "false"},
		"taken for later":    {match: "true", status: 202},
		"a DELETE":           {match: "true", method: "DELETE"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCourt(t)
			c.header.Set("X-Version", "9")
			if c.body = tc.body; tc.body == "" {
				c.body = `{}`
			}
			if tc.status != 0 {
				c.status = tc.status
			}
			a := newAdapter(t, rest.Config{URL: c.URL, ETag: tc.from, IfMatch: tc.match, Method: tc.method})
			msg := message()
			msg.Ref = adapters.Ref{ExternalID: "7"}
			receipt, err := a.Deliver(t.Context(), msg)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			if receipt.Ref != nil {
				got = receipt.Ref.ETag
			}
			if got != tc.want || receipt.NoETag != tc.lacks {
				t.Errorf("ETag %s, want %s; lacks one: %t", got, tc.want, receipt.NoETag)
			}
		})
	}
}

func TestCancellationOfWhatWasNeverCreated(t *testing.T) {
	c := newCourt(t)
	cancel := rest.Request{Method: "DELETE", URL: c.URL + "/h/{ref.external_id}/{fields.n}"}
	a := newAdapter(t, rest.Config{URL: c.URL, ExternalID: rest.Source{Path: "/id"}, Routes: map[string]rest.Route{
		"skip": {Request: cancel, WithoutID: "skip"}, "fail": {Request: cancel},
	}})
	for _, tc := range []struct {
		event, ref, body string
		skipped          bool
		err              string
	}{
		{event: "skip", body: `{"n":1}`, skipped: true},
		{event: "skip", ref: "7", body: `{"n":1}`},
		{event: "skip", ref: "7", body: `{}`, err: "{fields.n} is not known"},
		{event: "fail", body: `{"n":1}`, err: "{ref.external_id} is not known"},
	} {
		c.request = nil
		msg := adapters.Message{ID: "e-1", IdempotencyKey: "e-1", Type: tc.event, Key: "k", Body: []byte(tc.body), Ref: adapters.Ref{ExternalID: tc.ref}}
		receipt, err := a.Deliver(t.Context(), msg)
		would, _ := a.Preview(msg)
		if strings.HasPrefix(receipt.Skipped, "nothing to cancel: ") != tc.skipped || would.Skipped != receipt.Skipped || (c.request == nil) != (tc.skipped || tc.err != "") {
			t.Errorf("%+v: %+v, %+v", tc, receipt, would)
		}
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	if _, err := rest.New(rest.Config{URL: c.URL, Routes: map[string]rest.Route{"a": {WithoutID: "fail"}}}); err == nil || !strings.Contains(err.Error(), `routes["a"].without_id: "fail" is not skip`) {
		t.Error(err)
	}
}
