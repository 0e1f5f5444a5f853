package page

import (
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func site(t *testing.T, pages fstest.MapFS) *Site {
	t.Helper()
	s, err := NewSite("Hearings", []Link{{URL: "/", Text: "List"}, {URL: "/book", Text: "Book"}}, pages, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAPageHasTheLayoutAndTheParts(t *testing.T) {
	s := site(t, fstest.MapFS{
		"_parts.html": {Data: []byte(`{{define "bold"}}<b>{{.}}</b>{{end}}`)},
		"one.html":    {Data: []byte(`{{define "main"}}<p>{{template "bold" .Data}}</p>{{end}}`)},
		"two.html":    {Data: []byte(`{{define "main"}}second{{end}}`)},
	})
	w := httptest.NewRecorder()
	if err := s.Write(w, 404, View{Page: "one", Title: "A <title>", Here: "/book", Data: "<script>"}); err != nil {
		t.Fatal(err)
	}
	body := w.Body.String()
	for _, want := range []string{
		"<title>A &lt;title&gt; · Hearings</title>", "<h1>A &lt;title&gt;</h1>", "<b>&lt;script&gt;</b>",
		`<a href="/book" aria-current="page">Book</a>`, `<html lang="en">`, `<a class="skip" href="#main">`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page has no %s:\n%s", want, body)
		}
	}
	if w.Code != 404 || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("the answer is %d %q", w.Code, w.Header().Get("Content-Type"))
	}
}

func TestAPageThatCannotBeWrittenSendsNothing(t *testing.T) {
	s := site(t, fstest.MapFS{"one.html": {Data: []byte(`{{define "main"}}begin {{.Data.None}}{{end}}`)}})
	for _, name := range []string{"one", "unknown"} {
		w := httptest.NewRecorder()
		if err := s.Write(w, 200, View{Page: name, Data: struct{}{}}); err == nil || w.Body.Len() > 0 {
			t.Errorf("%s: error %v, and this was sent: %s", name, err, w.Body)
		}
	}
	if _, err := NewSite("", nil, fstest.MapFS{"one.html": {Data: []byte(`{{define "main"}}{{`)}}, nil); err == nil {
		t.Error("a page with a mistake was taken")
	}
}

func TestTheStyleSheetHasItsHashInItsAddress(t *testing.T) {
	s := site(t, fstest.MapFS{"one.html": {Data: []byte(`{{define "main"}}{{end}}`)}})
	w := httptest.NewRecorder()
	if err := s.Write(w, 200, View{Page: "one"}); err != nil {
		t.Fatal(err)
	}
	address := regexp.MustCompile(`href="(/static/style-[0-9a-f]+\.css)"`).FindStringSubmatch(w.Body.String())
	if address == nil {
		t.Fatalf("no style sheet:\n%s", w.Body)
	}
	for path, want := range map[string]int{address[1]: 200, "/static/style-0.css": 404} {
		w := httptest.NewRecorder()
		Style(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
		if w.Code != want || (want == 200) != strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %d, %q", path, w.Code, w.Header().Get("Cache-Control"))
		}
	}
}

func TestTimesAreInTheirZone(t *testing.T) {
	zone, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2027, 3, 15, 1, 30, 0, 0, time.UTC).In(zone)
	for want, got := range map[string]string{
		">Sun 14 Mar 2027, 21:30 EDT<": string(Time(at)),
		">21:30<":                      string(TimeNear(at, at.Add(2*time.Hour).UTC())),
		">Sun 14 Mar 2027, 21:30<":     string(TimeNear(at, at.Add(3*time.Hour).UTC())),
	} {
		if !strings.Contains(got, want) || !strings.Contains(got, `datetime="2027-03-14T21:30:00-04:00"`) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	odd := time.FixedZone(`"><b>`, 3600)
	if got := string(Time(at.In(odd))); strings.Contains(got, "<b>") || !strings.Contains(got, `title="Monday 15 March 2027, 02:30:00 &#34;&gt;&lt;b&gt;"`) {
		t.Errorf("the name of a zone is not escaped: %s", got)
	}
}
