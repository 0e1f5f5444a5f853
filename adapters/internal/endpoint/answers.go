package endpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/oauth2"
)

// badAnswer is a success without a token. Its text repeats nothing of the answer.
type badAnswer string

func (b badAnswer) Error() string { return string(b) }

// tokenAnswers is a transport that gives x/oauth2 the answers of token endpoints in the
// form of RFC 6749, 5.1, whatever the endpoint makes of it:
//
//   - JSON with any Content-Type, also with a byte-order mark
//   - a form instead of JSON
//   - expires_in as text, or as a number with a fraction
//   - any token_type: a token that we do not know how to use in another way is sent as
//     a bearer token
//
// A success without a token is a badAnswer, or an [oauth2.RetrieveError] if it has a
// reason.
type tokenAnswers struct{ next http.RoundTripper }

func (t tokenAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.next.RoundTrip(r)
	if err != nil || !success(res) {
		return res, err
	}
	body, err := readBody(res)
	_ = res.Body.Close() // it was only read
	if err != nil {
		return nil, err
	}
	token, expiresIn, ok := readToken(res.Header.Get("Content-Type"), body)
	switch {
	case !ok:
		return nil, badAnswer(fmt.Sprintf("answered HTTP %d, but its body is %s, not a token: check token_url", res.StatusCode, form(body)))
	case token == "" && reasonOf(res, body, nil) != "":
		return nil, &oauth2.RetrieveError{Response: res, Body: body}
	case token == "":
		return nil, badAnswer(fmt.Sprintf("answered HTTP %d, but without an access_token: check token_url and the client", res.StatusCode))
	}
	b, err := json.Marshal(map[string]any{"access_token": token, "expires_in": expiresIn})
	if err != nil {
		return nil, err
	}
	res.Header = http.Header{"Content-Type": {"application/json"}}
	res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	return res, nil
}

// readToken finds the token in an answer, and after how many seconds it expires: 0 if
// the answer does not say. ok is false if the body is neither JSON nor a form.
func readToken(contentType string, body []byte) (token string, expiresIn int64, ok bool) {
	var fields struct {
		Token     any `json:"access_token"`
		ExpiresIn any `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &fields); err == nil {
		token, _ = fields.Token.(string)
		return token, seconds(fmt.Sprint(fields.ExpiresIn)), true
	}
	media, _, _ := mime.ParseMediaType(contentType)
	if media != "application/x-www-form-urlencoded" && media != "text/plain" {
		return "", 0, false
	}
	values, err := url.ParseQuery(string(body))
	return values.Get("access_token"), seconds(values.Get("expires_in")), err == nil && values.Has("access_token")
}

// seconds reads a number of seconds. What is no positive number says nothing.
func seconds(text string) int64 {
	f, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || math.IsNaN(f) || f < 0 {
		return 0
	}
	return int64(min(f, math.MaxInt32))
}

// form says what a body looks like.
func form(body []byte) string {
	switch {
	case len(body) == 0:
		return "empty"
	case body[0] == '<':
		return "a page of HTML or XML"
	case json.Valid(body):
		return "JSON"
	default:
		return "text of another kind"
	}
}
