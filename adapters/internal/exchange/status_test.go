package exchange

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

func TestDefaultClasses(t *testing.T) {
	for class, statuses := range map[adapters.Class][]int{
		adapters.ClassDelivered: {200, 201, 204, 299},
		adapters.ClassAccepted:  {202},
		adapters.ClassPermanent: {101, 300, 301, 302, 307, 308, 400, 404, 405, 406, 410, 411, 413, 414, 415, 422, 428, 431, 451, 501, 505},
		adapters.ClassAuth:      {401, 407, 495, 496},
		adapters.ClassForbidden: {403},
		adapters.ClassTransient: {408, 423, 425, 500, 502, 503, 504, 507, 520, 599, 999},
		adapters.ClassConflict:  {409, 412},
		adapters.ClassThrottled: {429},
	} {
		for _, status := range statuses {
			if got := (Outcomes{}).Class(Answer{Status: status, Body: []byte(`{"title":"x"}`)}); got != class {
				t.Errorf("%d is %s, want %s", status, got, class)
			}
		}
	}
}

// An answer that may come from a gateway is distinguished from one of the receiver.
func TestAnswersWithoutAReason(t *testing.T) {
	const page = "<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>"
	unexplained := map[string]Answer{
		"nothing":              {},
		"white space":          {Body: []byte(" \r\n")},
		"a page":               {Header: http.Header{"Content-Type": {"text/html; charset=utf-8"}}, Body: []byte(page)},
		"a page called XML":    {Header: http.Header{"Content-Type": {"text/xml"}}, Body: []byte("<?xml version=\"1.0\"?>\n<!-- nginx -->\n<HTML><body/></HTML>")},
		"XHTML":                {Header: http.Header{"Content-Type": {"application/xhtml+xml"}}, Body: []byte(`<html xmlns="http://www.w3.org/1999/xhtml"/>`)},
		"a page called JSON":   {Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(page)},
		"text":                 {Header: http.Header{"Content-Type": {"text/plain"}}, Body: []byte("default backend - 404")},
		"a number":             {Body: []byte("404")},
		"braces that are none": {Body: []byte("{{ .Title }}")},
	}
	explained := map[string]Answer{
		"problem details":        {Header: http.Header{"Content-Type": {"application/problem+json"}}, Body: []byte(`{"title":"no such room"}`)},
		"JSON, called text":      {Header: http.Header{"Content-Type": {"text/plain"}}, Body: []byte("\xef\xbb\xbf {\"message\":\"no such room\"}")},
		"a list":                 {Body: []byte(`[{"field":"room"}]`)},
		"a string":               {Body: []byte(`"no such room"`)},
		"JSON that was cut":      {Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(`{"title":"no such`)},
		"XML":                    {Header: http.Header{"Content-Type": {"application/xml"}}, Body: []byte("<Error><Code>NoSuchRoom</Code></Error>")},
		"problem details in XML": {Header: http.Header{"Content-Type": {"application/problem+xml"}}, Body: []byte("<?xml version=\"1.0\"?><problem/>")},
	}
	want := func(o Outcomes, status int, name string, a Answer, class adapters.Class) {
		t.Helper()
		a.Status = status
		if got := o.Class(a); got != class {
			t.Errorf("%d with %s is %s, want %s", status, name, got, class)
		}
	}
	configured, err := ParseOutcomes(map[int]adapters.Class{410: adapters.ClassAuth}, map[int]string{404: "permanent"})
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range unexplained {
		for _, status := range []int{301, 302, 307, 400, 404, 405, 410, 419, 501} {
			want(Outcomes{}, status, name, a, adapters.ClassUnexplained)
		}
		for status, class := range map[int]adapters.Class{
			401: adapters.ClassAuth, 403: adapters.ClassForbidden, 409: adapters.ClassConflict, 413: adapters.ClassPermanent,
			422: adapters.ClassPermanent, 500: adapters.ClassTransient, 502: adapters.ClassTransient,
		} {
			want(Outcomes{}, status, name, a, class)
		}
		want(configured, 404, name, a, adapters.ClassPermanent)
		want(configured, 410, name, a, adapters.ClassAuth)
	}
	for name, a := range explained {
		for _, status := range []int{302, 400, 404, 405, 410, 419, 422, 501} {
			want(Outcomes{}, status, name, a, adapters.ClassPermanent)
		}
	}
}

func TestServiceUnavailableWithRetryAfterThrottles(t *testing.T) {
	for value, want := range map[string]adapters.Class{
		"30": adapters.ClassThrottled, "soon": adapters.ClassTransient, "-1": adapters.ClassTransient,
	} {
		a := Answer{Status: 503, Header: http.Header{"Retry-After": {value}}}
		if got := (Outcomes{}).Class(a); got != want {
			t.Errorf("Retry-After %q: %s, want %s", value, got, want)
		}
	}
}

func TestBadRequestAboutTheClientCertificateIsAuth(t *testing.T) {
	page := "<html><center><h1>400 Bad Request</h1></center><center>No required SSL certificate was sent</center></html>"
	if got := (Outcomes{}).Class(Answer{Status: 400, Body: []byte(page)}); got != adapters.ClassAuth {
		t.Errorf("got %s, want auth", got)
	}
}

func TestJudge(t *testing.T) {
	for _, class := range classes {
		t.Run(string(class), func(t *testing.T) {
			o, err := ParseRules(RuleOptions{Outcomes: map[int]string{418: string(class)}})
			if err != nil {
				t.Fatal(err)
			}
			receipt, err := o.Judge(Request{Method: "POST", Target: "court"}, Answer{Status: 418})
			if receipt.Code != "HTTP 418" {
				t.Errorf("code %q", receipt.Code)
			}
			switch class {
			case adapters.ClassDelivered, adapters.ClassDuplicate, adapters.ClassAccepted:
				if err != nil || receipt.Duplicate != (class == adapters.ClassDuplicate) || receipt.Accepted != (class == adapters.ClassAccepted) {
					t.Errorf("receipt %+v, error %v", receipt, err)
				}
			default:
				if got := adapters.ClassOf(err); got != class {
					t.Errorf("class %s", got)
				}
			}
		})
	}
}

func TestOutcomesNameEveryWrongEntry(t *testing.T) {
	_, err := ParseOutcomes(nil, map[int]string{42: "delivered", 409: "dupe", 500: "transient"})
	if err == nil || !strings.Contains(err.Error(), "outcomes.42: ") || !strings.Contains(err.Error(), `outcomes.409: "dupe"`) || strings.Contains(err.Error(), "500:") {
		t.Errorf("got %v", err)
	}
}

func TestRedirectNamesTheHostOnly(t *testing.T) {
	for host, want := range map[string]string{"evil.example": "evil.example", "tok-4711.evil.example": adapters.Hidden} {
		a := Answer{Status: 302, Header: http.Header{"Location": {"https://user:pw@" + host + "/secret/path?token=canary"}}}
		_, err := Rules{}.Judge(Request{Method: "POST", Target: "court", Header: http.Header{"Authorization": {"Bearer tok-4711"}}}, a)
		text := err.Error()
		if !strings.Contains(text, "a redirect to "+want+",") {
			t.Errorf("%q does not name the host as %s", text, want)
		}
		for _, leak := range []string{"pw", "secret", "canary", "tok-4711"} {
			if strings.Contains(text, leak) {
				t.Errorf("%q contains %q", text, leak)
			}
		}
	}
}

func TestRetryAfter(t *testing.T) {
	clock := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	date := func(d time.Duration) string { return clock.Add(d).Format(http.TimeFormat) }
	for name, tc := range map[string]struct {
		value, date string
		want        time.Duration
		ok          bool
	}{
		"none":                        {},
		"seconds":                     {value: "120", want: 2 * time.Minute, ok: true},
		"seconds with spaces":         {value: " 7 ", want: 7 * time.Second, ok: true},
		"zero":                        {value: "0", ok: true},
		"more than an hour":           {value: "86400", want: time.Hour, ok: true},
		"10^9":                        {value: "1000000000", want: time.Hour, ok: true},
		"more digits than an int64":   {value: strings.Repeat("9", 400), want: time.Hour, ok: true},
		"negative":                    {value: "-5"},
		"fraction":                    {value: "1.5"},
		"garbage":                     {value: "soon"},
		"date":                        {value: date(90 * time.Second), want: 90 * time.Second, ok: true},
		"date of a receiver a day on": {value: date(24*time.Hour + time.Minute), date: date(24 * time.Hour), want: time.Minute, ok: true},
		"date in the past":            {value: date(-time.Hour), ok: true},
		"date next year":              {value: date(8760 * time.Hour), want: time.Hour, ok: true},
		"date, but its Date is bad":   {value: date(time.Minute), date: "yesterday", want: time.Minute, ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			if tc.value != "" {
				h.Set("Retry-After", tc.value)
			}
			if tc.date != "" {
				h.Set("Date", tc.date)
			}
			got, ok := RetryAfter(h, func() time.Time { return clock })
			if got != tc.want || ok != tc.ok {
				t.Errorf("got %s, %t, want %s, %t", got, ok, tc.want, tc.ok)
			}
		})
	}
}
