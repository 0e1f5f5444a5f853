package rest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

// pages is a receiver with a list of 25 records, ten on a page.
func pages(t *testing.T, next func(base string, page int) (link, value string)) (*httptest.Server, *[]string) {
	t.Helper()
	var asked []string
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RequestURI())
		page, _ := strconv.Atoi(r.FormValue("page"))
		var items []any
		for n := page * 10; n < min(page*10+10, 25); n++ {
			items = append(items, map[string]any{
				"id": n, "case": fmt.Sprint("H-", n), "room": "3A", "start": fmt.Sprintf("2027-03-%02dT09:00:00-05:00", n+1), "v": 2, "tag": `"t"`,
				"status": map[bool]string{true: "cancelled", false: "booked"}[n == 3], "owner": map[bool]string{true: "court", false: "agency"}[n == 4],
			})
		}
		answer := map[string]any{"found": items}
		if page < 2 {
			link, value := next(s.URL, page+1)
			if link != "" {
				w.Header().Set("Link", link)
			}
			if value != "" {
				answer["next"] = value
			}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(s.Close)
	return s, &asked
}

func listed(url string) *rest.List {
	return &rest.List{
		URL: url, Items: "/found", Key: "/case", Fields: map[string]string{"courtroom": "/room", "start_time": "/start"}, At: "start_time",
		Version: "/v", ETag: rest.Source{Path: "/tag"}, ExternalID: rest.Source{Path: "/id"},
		Cancelled: rest.Match{Path: "/status", Equals: json.RawMessage(`"cancelled"`)},
		Found:     []rest.Match{{Path: "/owner", Equals: json.RawMessage(`"agency"`)}},
	}
}

func entries(t *testing.T, a *rest.Adapter, w adapters.Window) (all []adapters.Entry, err error) {
	t.Helper()
	err = a.List(t.Context(), w, func(e adapters.Entry) error { all = append(all, e); return nil })
	return all, err
}

func TestListPageAfterPage(t *testing.T) {
	for name, tc := range map[string]struct {
		url  string
		from rest.Source
		next func(base string, page int) (link, value string)
		want []string
	}{
		"a URL":  {"/h?from={from}", rest.Source{Path: "/next"}, func(base string, page int) (string, string) { return "", fmt.Sprintf("%s/h?page=%d", base, page) }, []string{"/h?from=1970-01-01T00%3A00%3A00Z", "/h?page=1", "/h?page=2"}},
		"a path": {"/h", rest.Source{Path: "/next"}, func(_ string, page int) (string, string) { return "", fmt.Sprintf("?page=%d", page) }, []string{"/h", "/h?page=1", "/h?page=2"}},
		"a Link": {"/h", rest.Source{Header: "Link"}, func(base string, page int) (string, string) {
			return fmt.Sprintf(`<%s/h?page=0>; rel="prev", <%[1]s/h?page=%d>; rel="next"`, base, page), ""
		}, []string{"/h", "/h?page=1", "/h?page=2"}},
		"a cursor": {"/h?page={cursor}&to={to}", rest.Source{Path: "/next"}, func(_ string, page int) (string, string) { return "", fmt.Sprint(page) }, []string{"/h?to=2100-01-01T00%3A00%3A00Z", "/h?page=1&to=2100-01-01T00%3A00%3A00Z", "/h?page=2&to=2100-01-01T00%3A00%3A00Z"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, asked := pages(t, tc.next)
			l := listed(s.URL + tc.url)
			l.Next = tc.from
			a := newAdapter(t, rest.Config{URL: s.URL + "/h", List: l})
			all, err := entries(t, a, adapters.Window{})
			if err != nil || len(all) != 25 {
				t.Fatalf("%d entries, %v", len(all), err)
			}
			if diff := cmp.Diff(tc.want, *asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
			want := adapters.Entry{
				Key: "H-2", ExternalID: "2", ETag: `"t"`, Version: new(int64(2)), At: time.Date(2027, 3, 3, 14, 0, 0, 0, time.UTC),
				Fields: map[string]string{"courtroom": "3A", "start_time": "2027-03-03T14:00:00Z"},
			}
			if diff := cmp.Diff(want, all[2]); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !all[3].Cancelled || all[4].Key != "" {
				t.Errorf("cancelled %+v, foreign %+v", all[3], all[4])
			}
			march := adapters.Window{From: time.Date(2027, 3, 2, 0, 0, 0, 0, time.UTC), To: time.Date(2027, 3, 4, 0, 0, 0, 0, time.UTC)}
			if all, err = entries(t, a, march); err != nil || len(all) != 2 {
				t.Errorf("in the window: %v, %v", all, err)
			}
		})
	}
}

// The relation next is found in every spelling that RFC 8288 allows, and in no other.
func TestLinksToTheNextPage(t *testing.T) {
	for link, want := range map[string]int{
		`<?page=1>; rel="next"`:                                     2,
		`<?page=1>; rel=next`:                                       2,
		`<?page=1>; rel="last next"`:                                2,
		`<?page=1>; Rel="NEXT"`:                                     2,
		`<?page=1>;rel = "next"`:                                    2,
		`<?page=1>; title="a, b; \"c\""; rel="next"`:                2,
		`<?page=0>; rel="prev"; title="<x>", <?page=1>; rel="next"`: 2,
		`<?page=1>; flag; rel=next`:                                 2,
		`<?page=1>; rel="next-archive"`:                             1,
		`<?page=1>; rel="prev"; title="rel=next"`:                   1,
		`<?page=1>`:          1,
		`?page=1; rel=next`:  1,
		`<?page=1; rel=next`: 1,
	} {
		s, asked := pages(t, func(_ string, page int) (string, string) {
			if page > 1 {
				return "", ""
			}
			return link, ""
		})
		l := listed(s.URL + "/h")
		l.Next = rest.Source{Header: "Link"}
		if _, err := entries(t, newAdapter(t, rest.Config{URL: s.URL + "/h", List: l}), adapters.Window{}); err != nil || len(*asked) != want {
			t.Errorf("%s: %d pages, %v; want %d", link, len(*asked), err, want)
		}
	}
}

// Both sides are reduced to the same form.
func TestEntryIsWhatIsListed(t *testing.T) {
	l := listed("https://court.example.gov/h")
	l.Fields["status"] = "/status"
	c := rest.Config{URL: "https://court.example.gov/h", List: l, Routes: map[string]rest.Route{
		"*:removed": {Request: rest.Request{Method: "DELETE"}}, "*:moved": {Request: rest.Request{Method: "DELETE"}, Then: []rest.Request{{Method: "POST"}}},
	}}
	a := newAdapter(t, c)
	msg := hearing()
	msg.Body = []byte(`{"case_reference":"H-1","courtroom":"3A","start_time":"2027-03-15T09:30:00-04:00","status":"cancelled"}`)
	e, err := a.Entry(msg)
	want := adapters.Entry{
		Key: "H-1", Version: msg.Version, At: time.Date(2027, 3, 15, 13, 30, 0, 0, time.UTC), Cancelled: true,
		Fields: map[string]string{"courtroom": "3A", "start_time": "2027-03-15T13:30:00Z", "status": "cancelled"},
	}
	if diff := cmp.Diff(want, e); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	msg.Type = "h:removed"
	if e, err = a.Entry(msg); err != nil || !e.Absent {
		t.Errorf("after a DELETE: %+v, %v", e, err)
	}
	msg.Type = "h:moved"
	if e, err = a.Entry(msg); err != nil || e.Absent {
		t.Errorf("after a DELETE and a POST: %+v, %v", e, err)
	}
}

func TestListsThatFail(t *testing.T) {
	for name, tc := range map[string]struct {
		status     int
		body, want string
	}{
		"a page":           {200, "<html>log in</html>", "is an HTML page"},
		"no JSON":          {200, "OK", "its body is not JSON"},
		"no list":          {200, `{"found":{}}`, "list.items (/found) is not a list"},
		"another host":     {200, `{"found":[],"next":"https://evil.example/h"}`, "leads to another host"},
		"a circle":         {200, `{"found":[],"next":"?page=1"}`, "a page that was read already"},
		"a refusal":        {403, `{"title":"not yours"}`, "HTTP 403: not yours"},
		"longer than 8 MB": {200, `{"found":["` + strings.Repeat("x", 9<<20) + `"]}`, "longer than 8 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCourt(t)
			c.status, c.body = tc.status, tc.body
			l := listed(c.URL + "/h")
			l.Next = rest.Source{Path: "/next"}
			if all, err := entries(t, newAdapter(t, rest.Config{URL: c.URL + "/h", List: l}), adapters.Window{}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%d entries, %v; want %s", len(all), err, tc.want)
			}
		})
	}
	if err := newAdapter(t, rest.Config{URL: "https://court.example.gov/h"}).Lists(); err == nil || !strings.Contains(err.Error(), "has no list: write list") {
		t.Errorf("without list: %v", err)
	}
}

func TestWrongLists(t *testing.T) {
	for want, change := range map[string]func(*rest.List){
		`list.url: is required`: func(l *rest.List) { l.URL = "" },
		`list.url: may have the placeholders {from}, {to} and {cursor}`: func(l *rest.List) { l.URL += "/{key}" },
		`list.next: is required for {cursor}`:                           func(l *rest.List) { l.URL += "?p={cursor}" },
		`list.url: has {cursor} in another place than the value of a`:   func(l *rest.List) { l.URL += "/{cursor}"; l.Next = rest.Source{Path: "/next"} },
		`list.url: has {cursor} in another place`:                       func(l *rest.List) { l.URL += "?page=p{cursor}"; l.Next = rest.Source{Path: "/next"} },
		`list.key: is required`:                                         func(l *rest.List) { l.Key = "" },
		`list.items: is not a JSON Pointer`:                             func(l *rest.List) { l.Items = "x" },
		`list.fields: is required`:                                      func(l *rest.List) { l.Fields = nil },
		`list.fields[courtroom]: is not a JSON Pointer`:                 func(l *rest.List) { l.Fields["courtroom"] = "room" },
		`list.at: "when" is not one of fields`:                          func(l *rest.List) { l.At = "when" },
		`list.cancelled: write path and equals`:                         func(l *rest.List) { l.Cancelled.Equals = nil },
		`list.found: has a field, but a list is about no message`:       func(l *rest.List) { l.Found = []rest.Match{{Path: "/a", Field: "a"}} },
		`list.next: name either path`:                                   func(l *rest.List) { l.Next = rest.Source{Path: "/a", Header: "b"} },
	} {
		l := listed("https://court.example.gov/h")
		change(l)
		if _, err := rest.New(rest.Config{URL: "https://court.example.gov/h", List: l}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s\ngot  %v", want, err)
		}
	}
}
