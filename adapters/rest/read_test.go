package rest_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

var names = map[adapters.Standing]string{
	adapters.Absent: "absent", adapters.Older: "older", adapters.Equal: "equal", adapters.Newer: "newer", adapters.Foreign: "foreign",
}

func hearing() adapters.Message {
	return adapters.Message{
		ID: "e-1", IdempotencyKey: "e-1", Type: "scheduling:updated", Key: "H-1", Version: new(int64(4)), Attempt: 2,
		Body: []byte(`{"case_reference":"H-1","courtroom":"3A","start_time":"2027-03-15T09:30:00-04:00","seats":12}`),
	}
}

func pointed(path, field string) rest.Match { return rest.Match{Path: path, Field: field} }

// What an answer says of the receiver's record.
func TestRead(t *testing.T) {
	c := newCourt(t)
	equal := []rest.Match{pointed("/room", "courtroom"), pointed("/start", "start_time"), pointed("/note", "remarks")}
	one := func() *rest.Read { return &rest.Read{URL: c.URL + "/h/{key}", Equal: equal} }
	with := func(change func(*rest.Read)) *rest.Read {
		r := one()
		change(r)
		return r
	}
	const same = `"room":"3A","start":"2027-03-15T13:30:00Z"`
	list := with(func(r *rest.Read) {
		r.URL, r.Items, r.Found = c.URL+"/h?case={fields.case_reference}", "/found", []rest.Match{pointed("/case", "case_reference"), {Path: "/open", Equals: json.RawMessage("true")}}
	})
	versioned := with(func(r *rest.Read) { r.Version = "/v" })
	only := with(func(r *rest.Read) { r.Version, r.Equal = "/v", nil })
	for name, tc := range map[string]struct {
		read   *rest.Read
		status int
		body   string
		want   string // standing, code, what differs, external id; or class and error
	}{
		"equal":                       {one(), 200, `{"id":7,` + same + `}`, "equal HTTP 200 '' 7"},
		"empty is missing":            {one(), 200, `{"id":7,"note":"",` + same + `}`, "equal HTTP 200 '' 7"},
		"another room":                {one(), 200, `{"id":7,"room":"3B","start":"2027-03-15T13:30:00Z"}`, "older HTTP 200 'it differs in courtroom' 7"},
		"another time and a note":     {one(), 200, `{"id":7,"room":"3A","start":"2027-03-15T09:30:00Z","note":"x"}`, "older HTTP 200 'it differs in start_time, remarks' 7"},
		"none":                        {one(), 404, `{"title":"no such hearing"}`, "absent HTTP 404 '' "},
		"gone":                        {one(), 410, `{"title":"no such hearing"}`, "absent HTTP 410 '' "},
		"no content":                  {one(), 204, ``, "absent HTTP 204 '' "},
		"404 of a gateway":            {one(), 404, `<html>no route</html>`, "unexplained: GET HOST/h/{key}: answered HTTP 404, without a reason that can be shown"},
		"404 that is configured":      {with(func(r *rest.Read) { r.Absent = []int{404} }), 404, ``, "absent HTTP 404 '' "},
		"500":                         {one(), 500, `{"title":"broken"}`, "transient: GET HOST/h/{key}: answered HTTP 500: broken"},
		"401":                         {one(), 401, ``, "auth: GET HOST/h/{key}: answered HTTP 401"},
		"405":                         {one(), 405, `{"title":"no reads here"}`, "permanent: GET HOST/h/{key}: answered HTTP 405: no reads here"},
		"page":                        {one(), 200, `<html>login</html>`, "transient: GET HOST/h/{key}: answered HTTP 200, but its body is an HTML page"},
		"no JSON":                     {one(), 200, `OK`, "transient: GET HOST/h/{key}: answered HTTP 200, but its body is not JSON, so nobody knows what the receiver has"},
		"too long":                    {one(), 200, `{"id":7,"x":"` + strings.Repeat("x", 70_000) + `"}`, "permanent: GET HOST/h/{key}: answered HTTP 200, but its body is longer than 64 KiB: make url find only the record of this key"},
		"an error in a 200":           {with(func(r *rest.Read) { r.Answers = []adapters.Answer{{Path: "/error", Class: "transient"}} }), 200, `{"error":"busy"}`, "transient: GET HOST/h/{key}: answered HTTP 200: busy"},
		"list without it":             {list, 200, `{"found":[]}`, "absent HTTP 200 '' "},
		"list with others":            {list, 200, `{"found":[{"case":"H-2","open":true},{"case":"H-1","open":false,` + same + `}]}`, "absent HTTP 200 '' "},
		"list with it":                {list, 200, `{"found":[{"case":"H-2","open":true,"id":1},{"case":"H-1","open":true,"id":2,` + same + `}]}`, "equal HTTP 200 '' 2"},
		"list with two":               {list, 200, `{"found":[{"case":"H-1","open":true,"id":1},{"case":"H-1","open":true,"id":2}]}`, "foreign HTTP 200 'it has 2 records of this key' "},
		"no list":                     {list, 200, `{"id":7}`, "permanent: GET HOST/h: answered HTTP 200, but items (/found) is not a list in its body"},
		"the answer is a list":        {with(func(r *rest.Read) { r.Items = "/" }), 200, `[{"id":7,` + same + `}]`, "equal HTTP 200 '' 7"},
		"same version":                {versioned, 200, `{"id":7,"v":4,` + same + `}`, "equal HTTP 200 '' 7"},
		"same version, changed there": {versioned, 200, `{"id":7,"v":"4","room":"3B","start":"2027-03-15T13:30:00Z"}`, "foreign HTTP 200 'it differs in courtroom' 7"},
		"older version":               {versioned, 200, `{"id":7,"v":3,` + same + `}`, "older HTTP 200 '' 7"},
		"newer version":               {versioned, 200, `{"id":7,"v":5}`, "newer HTTP 200 'it differs in courtroom, start_time' 7"},
		"no version there":            {versioned, 200, `{"id":7,` + same + `}`, "equal HTTP 200 '' 7"},
		"version alone":               {only, 200, `{"id":7,"v":4}`, "equal HTTP 200 '' 7"},
		"version alone, and missing":  {only, 200, `{"id":7}`, "older HTTP 200 '' 7"},
	} {
		t.Run(name, func(t *testing.T) {
			c.status, c.body = tc.status, tc.body
			a := newAdapter(t, rest.Config{URL: c.URL + "/h", ExternalID: rest.Source{Path: "/id"}, Read: tc.read})
			if !a.Reads(hearing()) {
				t.Fatal("cannot be read")
			}
			r, err := a.Read(t.Context(), hearing())
			got := fmt.Sprintf("%s %s '%s' ", names[r.Standing], r.Code, r.Differs)
			if r.Ref != nil {
				got += r.Ref.ExternalID
			}
			if err != nil {
				got = string(adapters.ClassOf(err)) + ": " + strings.ReplaceAll(err.Error(), strings.TrimPrefix(c.URL, "http://"), "HOST")
				if want := fmt.Sprintf("HTTP %d", tc.status); r.Code != want {
					t.Errorf("code %q, want %q", r.Code, want)
				}
			}
			if !strings.HasPrefix(got, tc.want) || err == nil && got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// The request of a read is sent as configured, and changes nothing.
func TestReadOnTheWire(t *testing.T) {
	c := newCourt(t)
	c.status, c.body, c.header = 200, `{"found":[{"id":"9","v":4,"tag":"t1","more":"m"}]}`, http.Header{"Etag": {`"of the list"`}}
	a := newAdapter(t, rest.Config{
		URL: c.URL + "/h", Headers: map[string]adapters.Secret{"X-Source": "AGENCY"}, ExternalID: rest.Source{Path: "/id"},
		Auth:  adapters.Credentials{Kind: "bearer", Token: "s3cret-token"},
		Learn: map[string]rest.Source{"more": {Path: "/more"}},
		Read: &rest.Read{
			Method: "POST", URL: c.URL + "/search", Body: rest.Body{Kind: "template", ContentType: "application/json", Template: `{"case":"{fields.case_reference}"}`},
			Items: "/found", Version: "/v", ETag: rest.Source{Path: "/tag"},
		},
	})
	r, err := a.Read(t.Context(), hearing())
	if err != nil {
		t.Fatal(err)
	}
	h := c.request.Header
	got := []string{c.request.Method, c.request.URL.Path, c.sent, h.Get("Content-Type"), h.Get("Authorization"), h.Get("X-Source"), h.Get("Idempotency-Key"), h.Get("If-Match")}
	if diff := cmp.Diff([]string{"POST", "/search", `{"case":"H-1"}`, "application/json", "Bearer s3cret-token", "AGENCY", "", ""}, got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if r.Ref.ExternalID != "9" || r.Ref.ETag != `"t1"` || r.Ref.Learned["more"] != "m" {
		t.Errorf("reference %+v", r.Ref)
	}
}

// A message that removes the record is done if there is none.
func TestReadOfARemoval(t *testing.T) {
	c := newCourt(t)
	a := newAdapter(t, rest.Config{
		URL: c.URL + "/h", ExternalID: rest.Source{Path: "/id"},
		Read: &rest.Read{URL: c.URL + "/h/{ref.external_id}", Equal: []rest.Match{pointed("/room", "courtroom")}},
		Routes: map[string]rest.Route{
			"*:cancelled": {Request: rest.Request{Method: "DELETE", URL: c.URL + "/h/{ref.external_id}", Reference: "forget"}},
			"*:noted":     {Request: rest.Request{URL: c.URL + "/h/{ref.external_id}/notes", Reference: "keep"}},
			"*:updated":   {Request: rest.Request{Method: "PUT"}, Known: &rest.Known{Request: rest.Request{URL: c.URL + "/h/{ref.external_id}"}, Gone: "create"}},
		},
	})
	msg := hearing()
	if a.Reads(msg) {
		t.Error("can be read without the id")
	}
	msg.Ref = adapters.Ref{ExternalID: "7", ETag: `"x"`}
	for _, tc := range []struct {
		event  string
		status int
		body   string
		want   string
		ref    *adapters.Ref
	}{
		{"h:cancelled", 404, `{"title":"gone"}`, "equal", &adapters.Ref{Version: msg.Version}},
		{"h:cancelled", 200, `{"id":"7","room":"3A"}`, "older", &adapters.Ref{ExternalID: "7", Version: msg.Version}},
		{"h:updated", 404, `{"title":"gone"}`, "absent", &adapters.Ref{}},
		{"h:created", 404, `{"title":"gone"}`, "absent", nil},
	} {
		c.status, c.body = tc.status, tc.body
		msg.Type = tc.event
		r, err := a.Read(t.Context(), msg)
		if err != nil || names[r.Standing] != tc.want {
			t.Errorf("%s, HTTP %d: %s, %v; want %s", tc.event, tc.status, names[r.Standing], err, tc.want)
		}
		if diff := cmp.Diff(tc.ref, r.Ref); diff != "" {
			t.Errorf("%s, HTTP %d: reference (-want +got):\n%s", tc.event, tc.status, diff)
		}
	}
	if msg.Type = "h:noted"; a.Reads(msg) {
		t.Error("a request for a part of the record is read as the record")
	}
}

// An event of two requests: the old booking is removed, then there is a new one.
func TestSteps(t *testing.T) {
	c := newCourt(t)
	a := newAdapter(t, rest.Config{
		URL: c.URL + "/h", ExternalID: rest.Source{Path: "/id"},
		Read: &rest.Read{URL: c.URL + "/h?key={key}", Items: "/", Equal: []rest.Match{pointed("/room", "courtroom")}},
		Routes: map[string]rest.Route{
			"*:updated": {Request: rest.Request{Method: "POST"}, Known: &rest.Known{
				Request: rest.Request{Method: "DELETE", URL: c.URL + "/h/{ref.external_id}", Reference: "forget", Body: rest.Body{Kind: "none"}},
				Then:    []rest.Request{{Method: "POST", Headers: map[string]adapters.Secret{"X-Step": "2"}}, {URL: c.URL + "/notify", Reference: "keep"}},
			}},
		},
	})
	msg := hearing()
	msg.Ref = adapters.Ref{ExternalID: "7"}
	type sent struct {
		Method, Path, Step, Route string
		More                      bool
		ID                        string
	}
	var all []sent
	deliver := func() {
		c.status, c.body = 201, fmt.Sprintf(`{"id":"%d"}`, 8+msg.Step)
		receipt, err := a.Deliver(t.Context(), msg)
		if err != nil {
			t.Fatal(err)
		}
		s := sent{c.request.Method, c.request.URL.Path, c.request.Header.Get("X-Step"), a.Route(msg), receipt.More, ""}
		if receipt.Ref != nil {
			msg.Ref = *receipt.Ref
		}
		s.ID = msg.Ref.ExternalID
		all = append(all, s)
		msg.Step++
	}
	deliver()
	// Its answer was lost: the receiver has no record any more, so the step is done.
	before := msg
	before.Step, before.Ref = 0, adapters.Ref{ExternalID: "7"}
	c.status, c.body = 200, `[]`
	if r, err := a.Read(t.Context(), before); err != nil || r.Standing != adapters.Equal || !r.More {
		t.Errorf("read of the first step: %+v, %v", r, err)
	}
	deliver()
	c.status, c.body = 200, `[{"id":"9","room":"3A"}]`
	before.Step, before.Ref = 1, adapters.Ref{}
	if r, err := a.Read(t.Context(), before); err != nil || r.Standing != adapters.Equal || !r.More || r.Ref.ExternalID != "9" {
		t.Errorf("read of the second step: %+v, %v", r, err)
	}
	deliver()
	msg.Step, msg.Ref = 0, adapters.Ref{}
	deliver() // without an id it is a single request
	want := []sent{
		{"DELETE", "/h/7", "", "*:updated/known", true, ""},
		{"POST", "/h", "2", "*:updated/known/then/1", true, "9"},
		{"POST", "/notify", "", "*:updated/known/then/2", false, "9"},
		{"POST", "/h", "", "*:updated", false, "8"},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWrongReadsAndSteps(t *testing.T) {
	ok := rest.Match{Path: "/room", Field: "courtroom"}
	read := func(change func(*rest.Read)) rest.Config {
		r := &rest.Read{URL: "https://court.example.gov/h/{key}", Equal: []rest.Match{ok}}
		change(r)
		return rest.Config{URL: "https://court.example.gov/h", Read: r}
	}
	steps := func(r rest.Route) rest.Config {
		return rest.Config{URL: "https://court.example.gov/h", Routes: map[string]rest.Route{"a": r}}
	}
	put := rest.Request{Method: "PUT"}
	for want, c := range map[string]rest.Config{
		`read.url: is required`: read(func(r *rest.Read) { r.URL = "" }),
		`read.method: "DELETE" may change something at the receiver; use GET, or POST for a search`: read(func(r *rest.Read) { r.Method = "DELETE" }),
		`read.body: belongs to method POST: remove it`:                                              read(func(r *rest.Read) { r.Body.Kind = "json" }),
		`read.url: {nothing} is not a placeholder that is allowed here`:                             read(func(r *rest.Read) { r.URL += "{nothing}" }),
		`read.equal: is required, unless version is there`:                                          read(func(r *rest.Read) { r.Equal = nil }),
		`read.equal[0].path: is required`:                                                           read(func(r *rest.Read) { r.Equal = []rest.Match{{Field: "a"}} }),
		`read.equal[0].path: is not a JSON Pointer`:                                                 read(func(r *rest.Read) { r.Equal = []rest.Match{{Path: "a", Field: "a"}} }),
		`read.found[0]: write either field, the name of a mapped field, or equals, a value`:         read(func(r *rest.Read) { r.Found = []rest.Match{{Path: "/a"}} }),
		`read.equal[1].equals: is not a single value`:                                               read(func(r *rest.Read) { r.Equal = []rest.Match{ok, {Path: "/a", Equals: json.RawMessage("[1]")}} }),
		`read.absent: 500 is not a status from 200 to 499`:                                          read(func(r *rest.Read) { r.Absent = []int{500} }),
		`read.items: is not a JSON Pointer`:                                                         read(func(r *rest.Read) { r.Items = "x" }),
		`read.version: is not a JSON Pointer`:                                                       read(func(r *rest.Read) { r.Version = "x" }),
		`read.answers[0].class: `:                                                                   read(func(r *rest.Read) { r.Answers = []adapters.Answer{{Class: "nonsense"}} }),
		`read.external_id: name either path`:                                                        read(func(r *rest.Read) { r.ExternalID = rest.Source{Path: "/a", Header: "b"} }),
		`learn["a-b"]: may have only letters`:                                                       read(func(r *rest.Read) { r.Learn = map[string]rest.Source{"a-b": {Path: "/a"}} }),
		`routes["a"].then[0]: is empty`:                                                             steps(rest.Route{Request: put, Then: []rest.Request{{}}}),
		`routes["a"].then: has 16 steps, but at most 15 are sent for an event`:                      steps(rest.Route{Request: put, Then: make([]rest.Request, 16)}),
		`routes["a"].then[0].method: "GET" cannot carry a message`:                                  steps(rest.Route{Request: put, Then: []rest.Request{{Method: "GET"}}}),
		`routes["a"].then: belongs to the route or to its known, not to both`:                       steps(rest.Route{Request: put, Then: []rest.Request{put}, Known: &rest.Known{Request: put, Then: []rest.Request{put}}}),
	} {
		if _, err := rest.New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s\ngot  %v", want, err)
		}
	}
	good := read(func(*rest.Read) {})
	good.Routes = maps.Collect(func(yield func(string, rest.Route) bool) {
		yield("a", rest.Route{Request: put, Then: []rest.Request{put}})
	})
	if _, err := rest.New(good); err != nil {
		t.Error(err)
	}
}
