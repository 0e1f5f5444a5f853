package exchange

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestReason(t *testing.T) {
	for name, tc := range map[string]struct {
		body string
		hide []string
		want string
	}{
		"problem details": {
			body: `{"type":"https://court.example/p/courtroom?x=1","title":"Unknown courtroom","status":422,"detail":"Jane Doe in 3A","instance":"/hearings/7"}`,
			want: "Unknown courtroom, type https://court.example/p/courtroom, instance /hearings/7",
		},
		"HMCTS validation":        {body: `{"errCode":"1004","errorDesc":"listingDate is missing","errLinkId":"L-9"}`, want: "1004: listingDate is missing: errLinkId L-9"},
		"Azure AD":                {body: `{"error_codes":[70001,70002],"error_description":"no such tenant"}`, want: "70001, 70002: no such tenant"},
		"OAuth 2":                 {body: `{"error":"invalid_client"}`, want: "invalid_client"},
		"HMCTS gateway":           {body: `{"statusCode":404,"message":"Resource not found"}`, want: "404: Resource not found"},
		"message only":            {body: `{"message":"busy"}`, want: "busy"},
		"hidden values":           {body: `{"message":"no room for Jane Doe with tok-1234"}`, hide: []string{"tok-1234", "Jane", "Jane Doe", "no"}, want: "no room for *** with ***"},
		"hidden, escaped":         {body: `{"message":"bad \u001b[31mJane\u0000 Doe"}`, hide: []string{"Jane Doe"}, want: "bad ***"},
		"hidden, in another case": {body: `{"message":"no room for JANE DOE with Tok-1234"}`, hide: []string{"tok-1234", "Jane Doe"}, want: "no room for *** with ***"},
		"a piece of a token":      {body: `{"message":"token abcdefghijkl… expired"}`, hide: []string{"Abcdefghijklmnopqrstuvw"}, want: "token ***… expired"},
		"a short word of a value": {body: `{"message":"unknown courtroom"}`, hide: []string{"Courtroom 3A"}, want: "unknown courtroom"},
		"base64":                  {body: `{"message":"Basic YWdlbmN5Omh1bnRlcjI6eA== is not known"}`, hide: []string{"hunter2:x"}, want: "Basic ***== is not known"},
		"base64 in a path":        {body: `{"instance":"/a/eGh1bnRlcjI6eA/b"}`, hide: []string{"hunter2:x"}, want: "instance ***"},
		"hexadecimal":             {body: `{"message":"0x68756e746572323a78"}`, hide: []string{"hunter2:x"}, want: "***"},
		"an id that tells none":   {body: `{"message":"trace 4bf92f3577b34da6a3ce929d0e0e4736, key Zm9vYmFyYmF6"}`, hide: []string{"hunter2:x"}, want: "trace 4bf92f3577b34da6a3ce929d0e0e4736, key Zm9vYmFyYmF6"},
		"escaped for a URL":       {body: `{"message":"no %4Aane%20Doe, %254Aane%20Doe"}`, hide: []string{"Jane Doe"}, want: "no ***, ***"},
		"escaped in JSON":         {body: `{"message":"{\"name\":\"\\u004aane Doe\"}"}`, hide: []string{"Jane Doe"}, want: `{"name":"***"}`},
		"escaped in HTML":         {body: `{"message":"no &#74;ane Doe"}`, hide: []string{"Jane Doe"}, want: "no ***"},
		"a value with escapes":    {body: `{"message":"no 100%25sure"}`, hide: []string{"100%25sure"}, want: "no ***"},
		"endless":                 {body: `{"message":"` + strings.Repeat("x", 60_000) + `"}`, want: "***"},
		"long":                    {body: `{"message":"` + strings.Repeat("long ", 100) + `"}`, want: strings.Repeat("long ", 39) + "lo…"},
		"empty":                   {},
		"HTML":                    {body: "<html>Jane Doe</html>"},
		"unknown object":          {body: `{"name":"Jane Doe"}`},
		"an array":                {body: `["Jane Doe"]`},
		"wrong types":             {body: `{"title":{"a":1},"message":null,"errCode":[["x"]]}`},
		"cut JSON":                {body: `{"title":"Jan`},
		"as deep as can be":       {body: strings.Repeat(`{"title":`, 20000)},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (Request{Secrets: func() []string { return tc.hide }}).Redact(Reason([]byte(tc.body))); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestSecrets(t *testing.T) {
	r := Request{
		URL:     &url.URL{Path: "/a", RawQuery: "of=query"},
		Header:  http.Header{"Authorization": {"Basic YWdlbmN5Omh1bnRlcjI="}, "Accept": {"text/xml"}},
		Secrets: func() []string { return []string{"signature"} },
	}
	want := []string{"Basic YWdlbmN5Omh1bnRlcjI=", "YWdlbmN5Omh1bnRlcjI=", "agency:hunter2", "hunter2", "query", "signature"}
	if got := slices.Sorted(slices.Values(r.secrets())); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
