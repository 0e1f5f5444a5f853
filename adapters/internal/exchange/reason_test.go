package exchange

import (
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
		"HMCTS validation":  {body: `{"errCode":"1004","errorDesc":"listingDate is missing","errLinkId":"L-9"}`, want: "1004: listingDate is missing: errLinkId L-9"},
		"Azure AD":          {body: `{"error_codes":[70001,70002],"error_description":"no such tenant"}`, want: "70001, 70002: no such tenant"},
		"OAuth 2":           {body: `{"error":"invalid_client"}`, want: "invalid_client"},
		"HMCTS gateway":     {body: `{"statusCode":404,"message":"Resource not found"}`, want: "404: Resource not found"},
		"message only":      {body: `{"message":"busy"}`, want: "busy"},
		"hidden values":     {body: `{"message":"no room for Jane Doe with tok-1234"}`, hide: []string{"tok-1234", "Jane", "Jane Doe", "no"}, want: "no room for *** with ***"},
		"hidden, escaped":   {body: `{"message":"bad \u001b[31mJane\u0000 Doe"}`, hide: []string{"Jane Doe"}, want: "bad ***"},
		"long":              {body: `{"message":"` + strings.Repeat("long ", 100) + `"}`, want: strings.Repeat("long ", 39) + "lo…"},
		"empty":             {},
		"HTML":              {body: "<html>Jane Doe</html>"},
		"unknown object":    {body: `{"name":"Jane Doe"}`},
		"an array":          {body: `["Jane Doe"]`},
		"wrong types":       {body: `{"title":{"a":1},"message":null,"errCode":[["x"]]}`},
		"cut JSON":          {body: `{"title":"Jan`},
		"as deep as can be": {body: strings.Repeat(`{"title":`, 20000)},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Reason([]byte(tc.body), tc.hide); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestClean(t *testing.T) {
	for name, tc := range map[string]struct {
		text  string
		limit int
		want  string
	}{
		"plain":            {"Hearing 7: Müller", 100, "Hearing 7: Müller"},
		"NUL":              {"a\x00b", 100, "ab"},
		"invalid UTF-8":    {"a\xff\xfeb", 100, "ab"},
		"colour":           {"\x1b[1;31mred\x1b[0m", 100, "red"},
		"window title":     {"\x1b]0;owned\x07text", 100, "text"},
		"lone escape":      {"a\x1bb", 100, "ab"},
		"C1 control":       {"a\u009b31mb", 100, "a31mb"},
		"right to left":    {"a\u202eb", 100, "ab"},
		"lines":            {" a\r\n\tb\u2028c ", 100, "a b c"},
		"cut at character": {"ééééé", 8, "éé…"},
		"fits exactly":     {"abcde", 5, "abcde"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Clean(tc.text, tc.limit); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
