package soap_test

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/adaptertest"
	"github.com/hms-mkt/lockstep/adapters/soap"
)

const (
	calendar = "urn:example:calendar"
	envelope = `<soap:Envelope xmlns:soap="%s" xmlns:cal="` + calendar + `"><soap:Body>%s</soap:Body></soap:Envelope>`
	stored   = `<cal:NotifyHearingResponse><cal:entryId>ext-7</cal:entryId><cal:result>STORED</cal:result></cal:NotifyHearingResponse>`
)

// namespaces of the envelope, by version.
var envelopes = map[string]string{
	soap.Version11: "http://schemas.xmlsoap.org/soap/envelope/",
	soap.Version12: "http://www.w3.org/2003/05/soap-envelope",
}

func TestConformance(t *testing.T) {
	for version, types := range map[string]string{
		soap.Version11: soap.Text, soap.Version12: soap.Digest,
	} {
		t.Run(version, func(t *testing.T) { conformance(t, version, types) })
	}
}

func conformance(t *testing.T, version, passwordType string) {
	t.Helper()
	adaptertest.Run(t, adaptertest.Harness{
		New: func(t *testing.T, s adaptertest.Setup) adapters.Adapter {
			return newAdapter(t, soap.Config{
				URL: s.URL, Timeout: s.Timeout, Version: version,
				Namespaces: map[string]string{"cal": calendar},
				Action:     "urn:example:calendar/NotifyHearing",
				Body: `<cal:NotifyHearing><cal:reference>{fields.hearingId}</cal:reference><cal:start>{fields.startsAt}</cal:start>` +
					`<cal:remarks>{fields.canary?}</cal:remarks></cal:NotifyHearing>`,
				Addressing: &soap.Addressing{},
				Security:   soap.Security{Kind: soap.UsernameToken, Username: "agency", Password: s.Secret, PasswordType: passwordType},
				ExternalID: "cal:NotifyHearingResponse/cal:entryId",
			})
		},
		Accept: func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Set("Content-Type", "text/xml; charset=utf-8")
			_, _ = fmt.Fprintf(w, envelope, envelopes[version], stored)
		},
		Refuse: refuse(version),
		Key: func(_ *http.Request, body []byte) string {
			return textAfter(string(body), "<wsa:MessageID>urn:uuid:")
		},
		Stable:      withoutToken,
		Classes:     unexplained(),
		BodyDecides: true,
	})
}

// unexplained are the statuses for which refuse writes text, and which do not blame the
// message without a reason: they may come from a gateway.
func unexplained() map[int]adapters.Class {
	classes := map[int]adapters.Class{}
	for status, class := range adaptertest.DefaultClasses() {
		if class == adapters.ClassPermanent && !slices.Contains([]int{400, 413, 414, 415, 422}, status) {
			classes[status] = adapters.ClassUnexplained
		}
	}
	return classes
}

// refuse writes a fault for the statuses that a service itself gives: for a bad message
// (400, 422), a bad token (401), or its own trouble (429, 500, 503). The others come
// from a gateway in front of a service, which knows no SOAP: they are text.
func refuse(version string) func(http.ResponseWriter, int, string) {
	codes := map[int]string{
		400: "soap:Client", 422: "soap:Client", 401: "wsse:FailedAuthentication",
		429: "soap:Server", 500: "soap:Server", 503: "soap:Server",
	}
	return func(w http.ResponseWriter, status int, reason string) {
		code, ok := codes[status]
		if !ok {
			http.Error(w, reason, status)
			return
		}
		w.Header().Set("Content-Type", "text/xml; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, faultMessage(version, code, reason))
	}
}

// faultMessage is a fault with a SOAP 1.1 code, in either version.
func faultMessage(version, code, reason string) string {
	var text strings.Builder
	_ = xml.EscapeText(&text, []byte(reason))
	const wsse = ` xmlns:wsse="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"`
	body := `<soap:Fault` + wsse + `><faultcode>` + code + `</faultcode><faultstring>` + text.String() + `</faultstring></soap:Fault>`
	if version == soap.Version12 {
		subcode := ""
		switch code {
		case "soap:Client":
			code = "soap:Sender"
		case "soap:Server":
			code = "soap:Receiver"
		default:
			subcode = `<soap:Subcode><soap:Value>` + code + `</soap:Value></soap:Subcode>`
			code = "soap:Sender"
		}
		body = `<soap:Fault` + wsse + `><soap:Code><soap:Value>` + code + `</soap:Value>` + subcode + `</soap:Code>` +
			`<soap:Reason><soap:Text xml:lang="en">` + text.String() + `</soap:Text></soap:Reason></soap:Fault>`
	}
	return fmt.Sprintf(envelope, envelopes[version], body)
}

var tokenBlock = regexp.MustCompile(`(?s)<wsse:Security .*</wsse:Security>`)

// withoutToken removes the part that is new in every attempt.
func withoutToken(body []byte) []byte { return tokenBlock.ReplaceAll(body, nil) }

// textAfter returns the text of XML that follows a piece of it.
func textAfter(document, before string) string {
	_, text, _ := strings.Cut(document, before)
	text, _, _ = strings.Cut(text, "<")
	return text
}

func newAdapter(t *testing.T, c soap.Config) *soap.Adapter {
	t.Helper()
	a, err := soap.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}
