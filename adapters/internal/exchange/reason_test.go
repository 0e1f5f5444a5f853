package exchange

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestReason(t *testing.T) {
	const notShown, partly = "its reason is not shown, because it repeats what was sent", " (a part is not shown, because it repeats what was sent)"
	for name, tc := range map[string]struct {
		body string
		hide []string
		want string
	}{
		"problem details": {
			body: `{"type":"https://court.example/p/courtroom?x=1","title":"Unknown courtroom","status":422,"detail":"Room 9 does not exist","instance":"/hearings/7"}`,
			want: "Unknown courtroom: Room 9 does not exist, type https://court.example/p/courtroom, instance /hearings/7",
		},
		"HMCTS validation":      {body: `{"errCode":"1004","errorDesc":"listingDate is missing","errLinkId":"L-9"}`, want: "1004: listingDate is missing, errLinkId L-9"},
		"HMCTS hearings":        {body: `{"errCode":1000,"errDesc":"Duplicate hearing"}`, want: "1000: Duplicate hearing"},
		"HMCTS gateway":         {body: `{"statusCode":404,"message":"Resource not found"}`, want: "404: Resource not found"},
		"HMCTS list":            {body: `{"status":"BAD_REQUEST","errors":["listingDate must be set","room must be set"]}`, want: "BAD_REQUEST: listingDate must be set; room must be set"},
		"Azure AD":              {body: `{"error":"invalid_client","error_codes":[70001,70002],"error_description":"no such tenant"}`, want: "70001, 70002, invalid_client: no such tenant"},
		"OAuth 2":               {body: `{"error":"invalid_client"}`, want: "invalid_client"},
		"Spring":                {body: `{"timestamp":"2027-03-01T10:00:00Z","status":422,"error":"Bad Request","message":"no such room","path":"/api/hearings"}`, want: "Bad Request: no such room, path /api/hearings"},
		"Spring's fields":       {body: `{"message":"Validation failed","fieldErrors":[{"field":"room","defaultMessage":"must not be blank","code":"NotBlank"}]}`, want: "Validation failed; NotBlank: must not be blank, field room"},
		"ASP.NET":               {body: `{"title":"One or more validation errors occurred.","status":422,"errors":{"Room":["The Room field is required."],"$.start":["Bad time.","Too late."]}}`, want: "One or more validation errors occurred; $.start: Bad time; Too late; Room: The Room field is required"},
		"JSON:API":              {body: `{"errors":[{"status":"422","code":"E7","title":"Invalid","detail":"is not a room","source":{"pointer":"/data/attributes/room"}}]}`, want: "E7: Invalid: is not a room; pointer /data/attributes/room"},
		"Microsoft Graph":       {body: `{"error":{"code":"ErrorInvalidRequest","message":"The start is after the end.","innerError":{"code":"x7","request-id":"0f-1"}}}`, want: "ErrorInvalidRequest: The start is after the end; x7, request-id 0f-1"},
		"Google":                {body: `{"error":{"code":422,"message":"Bad range","errors":[{"domain":"calendar","reason":"timeRangeEmpty","message":"Bad range"}],"status":"INVALID_ARGUMENT"}}`, want: "INVALID_ARGUMENT: Bad range; timeRangeEmpty: Bad range, domain calendar"},
		"FHIR":                  {body: `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"processing","diagnostics":"Slot is busy","details":{"text":"Busy","coding":[{"code":"slot-busy"}]},"expression":["Appointment.slot"]}]}`, want: "processing, error: Slot is busy, expression Appointment.slot; Busy; slot-busy"},
		"Prism":                 {body: `{"type":"https://stoplight.io/prism/errors#UNPROCESSABLE_ENTITY","title":"Invalid request","status":422,"detail":"Your request is not valid","validation":[{"location":["body","room"],"severity":"Error","code":"required","message":"must have required property"}]}`, want: "Invalid request: Your request is not valid, type https://stoplight.io/prism/errors#UNPROCESSABLE_ENTITY; required, Error: must have required property, location body/room"},
		"message only":          {body: `{"message":"busy"}`, want: "busy"},
		"a mark before it":      {body: "\xef\xbb\xbf" + `{"message":"busy"}`, want: "busy"},
		"a list":                {body: `[{"code":"A"},{"code":"B"},{"code":"A"}]`, want: "A; B"},
		"a text":                {body: `"no such room"`, want: "no such room"},
		"a hidden text":         {body: `{"code":"E7","message":"no room for Jane Doe with tok-1234"}`, hide: []string{"tok-1234"}, want: "E7" + partly},
		"a hidden code":         {body: `{"code":"tok-1234","message":"no room"}`, hide: []string{"tok-1234"}, want: "no room" + partly},
		"everything is hidden":  {body: `{"message":"bad \u001b[31mJane\u0000 Doe"}`, hide: []string{"Jane Doe"}, want: notShown},
		"two parts together":    {body: `{"code":"Jane","message":"Doe is away"}`, hide: []string{"Jane: Doe"}, want: notShown},
		"base64":                {body: `{"message":"Basic YWdlbmN5Omh1bnRlcjI6eA== is not known"}`, hide: []string{"hunter2:x"}, want: notShown},
		"base64 in a path":      {body: `{"title":"x","instance":"/a/eGh1bnRlcjI6eA/b"}`, hide: []string{"hunter2:x"}, want: "x" + partly},
		"an id that tells none": {body: `{"message":"trace 4bf92f3577b34da6a3ce929d0e0e4736, key Zm9vYmFyYmF6"}`, hide: []string{"hunter2:x"}, want: "trace 4bf92f3577b34da6a3ce929d0e0e4736, key Zm9vYmFyYmF6"},
		"escaped for a URL":     {body: `{"message":"no %254Aane%20Doe"}`, hide: []string{"Jane Doe"}, want: notShown},
		"escaped in HTML":       {body: `{"message":"no &#74;ane Doe"}`, hide: []string{"Jane Doe"}, want: notShown},
		"long":                  {body: `{"message":"` + strings.Repeat("long ", 100) + `"}`, want: strings.Repeat("long ", 39) + "lo…"},
		"empty":                 {},
		"HTML":                  {body: "<html>Jane Doe</html>"},
		"unknown object":        {body: `{"name":"Jane Doe"}`},
		"wrong types":           {body: `{"title":{"a":1},"message":null,"errCode":[["x"]]}`},
		"cut JSON":              {body: `{"title":"Jan`},
		"as deep as can be":     {body: strings.Repeat(`{"error":`, 20000)},
		"nginx":                 {body: "<html><center>No required SSL certificate was sent</center></html>", want: "the receiver wants a client certificate, or refuses the one that was shown: check tls.cert_file"},
	} {
		t.Run(name, func(t *testing.T) {
			a := Answer{Status: 422, Body: []byte(tc.body)}
			if got := (Request{Secrets: func() []string { return tc.hide }}).Reason(a); got != tc.want {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}

func TestReasonInPlainText(t *testing.T) {
	r := Request{Payload: []byte(`{"party":"Jane Roe"}`)}
	for text, want := range map[string]string{
		"no such  room\r\n":        "no such room",
		"no room for Jane":         "its reason is not shown, because it repeats what was sent",
		strings.Repeat("x ", 5000): "",
	} {
		a := Answer{Status: 422, Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, Body: []byte(text)}
		if got := r.Reason(a); got != want {
			t.Errorf("%.40q: got %q, want %q", text, got, want)
		}
	}
}

// The key is in every log, so a reason may name it.
func TestReasonsMayNameTheKey(t *testing.T) {
	r := Request{Payload: []byte(`{"case":"H-2027-000007","party":"Jane Roe"}`), Key: "H-2027-000007"}
	for text, want := range map[string]string{
		"no hearing H-2027-000007":              "no hearing H-2027-000007",
		"no hearing H-2027-000007 for Jane Roe": "its reason is not shown, because it repeats what was sent",
	} {
		if got := r.Reason(Answer{Status: 404, Body: []byte(`{"message":"` + text + `"}`)}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
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
