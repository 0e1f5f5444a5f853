package endpoint_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
)

// Token endpoints that do not follow RFC 6749 to the letter. A second delivery shows
// whether the time of expiry was read: a token with five seconds left is renewed.
func TestTokensOfOddEndpoints(t *testing.T) {
	const kept, renewed = "token-1", "token-2"
	for name, tc := range map[string]struct {
		contentType, body string // of the answer; %d is the number of the fetch
		second            string // the token of the second delivery
	}{
		"BearerToken":             {"application/json", `{"access_token":"token-%d","token_type":"BearerToken","expires_in":3600}`, kept},
		"jwt-bearer":              {"application/json", `{"access_token":"token-%d","token_type":"urn:ietf:params:oauth:grant-type:jwt-bearer"}`, kept},
		"a type that is no text":  {"application/json", `{"access_token":"token-%d","token_type":1}`, kept},
		"no type":                 {"application/json", `{"access_token":"token-%d"}`, kept},
		"expiry as text":          {"application/json", `{"access_token":"token-%d","expires_in":"3600"}`, kept},
		"short expiry as text":    {"application/json", `{"access_token":"token-%d","expires_in":"5"}`, renewed},
		"expiry with a fraction":  {"application/json", `{"access_token":"token-%d","expires_in":5.75}`, renewed},
		"fraction as text":        {"application/json", `{"access_token":"token-%d","expires_in":"3599.0"}`, kept},
		"expiry in another form":  {"application/json", `{"access_token":"token-%d","expires_in":"never"}`, kept},
		"expiry beyond all times": {"application/json", `{"access_token":"token-%d","expires_in":1e300}`, kept},
		"no expiry":               {"application/json", `{"access_token":"token-%d","expires_in":null}`, kept},
		"JSON as text":            {"text/plain; charset=utf-8", `{"access_token":"token-%d","expires_in":3600}`, kept},
		"JSON as HTML":            {"text/html", `{"access_token":"token-%d","expires_in":3600}`, kept},
		"JSON as a form":          {"application/x-www-form-urlencoded", `{"access_token":"token-%d"}`, kept},
		"a byte-order mark":       {"application/json", "\uFEFF" + `{"access_token":"token-%d","expires_in":3600}`, kept},
		"a mark and text":         {"text/plain", "\r\n\uFEFF" + `{"access_token":"token-%d","expires_in":3600}`, kept},
		"a form":                  {"application/x-www-form-urlencoded", `access_token=token-%d&expires_in=5`, renewed},
		"a form as text":          {"text/plain", `access_token=token-%d&token_type=bearer`, kept},
	} {
		t.Run(name, func(t *testing.T) {
			l, c := newLogin(t), newCourt(t)
			l.answer = func(w http.ResponseWriter, n int32) {
				w.Header().Set("Content-Type", tc.contentType)
				_, _ = io.WriteString(w, fmt.Sprintf(tc.body, n))
			}
			a := l.adapter(t, c)
			for i, want := range []string{"token-1", tc.second} {
				if _, err := a.Deliver(t.Context(), message()); err != nil {
					t.Fatal(err)
				}
				if got := c.request.Header.Get("Authorization"); got != "Bearer "+want {
					t.Errorf("delivery %d sent %q, want Bearer %s", i+1, got, want)
				}
			}
		})
	}
}
