package courtsim_test

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// Envelopes of the two versions around header blocks and a body.
const (
	envelope11 = `<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/" xmlns:cal="urn:example:calendar"><soap:Header>%s</soap:Header><soap:Body>%s</soap:Body></soap:Envelope>`
	envelope12 = `<soap:Envelope xmlns:soap="http://www.w3.org/2003/05/soap-envelope" xmlns:cal="urn:example:calendar"><soap:Header>%s</soap:Header><soap:Body>%s</soap:Body></soap:Envelope>`
)

func messageID(key string) string {
	return `<wsa:MessageID xmlns:wsa="http://www.w3.org/2005/08/addressing">urn:uuid:` + key + `</wsa:MessageID>`
}

func notify(reference, room string) string {
	return "<cal:NotifyHearing><cal:reference>" + reference + "</cal:reference><cal:start>2027-03-05T10:00:00Z</cal:start><cal:room>" +
		room + "</cal:room><cal:status>booked</cal:status></cal:NotifyHearing>"
}

func cancel(reference string) string {
	return "<cal:CancelHearing><cal:reference>" + reference + "</cal:reference></cal:CancelHearing>"
}

// send posts a message. Headers are pairs, and the value "-" removes one.
func (h *harness) send(message string, headers ...string) answer {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), "POST", h.url+"/soap/calendar", strings.NewReader(message))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "text/xml; charset=utf-8")
	req.Header.Set("SOAPAction", `""`)
	if strings.Contains(message, "2003/05") {
		req.Header.Set("Content-Type", "application/soap+xml; charset=utf-8")
		req.Header.Del("SOAPAction")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
		if headers[i+1] == "-" {
			req.Header.Del(headers[i])
		}
	}
	res, err := h.http.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{status: res.StatusCode, header: res.Header, body: string(b), err: err}
}

// said is the content of an answer, of either version.
type said struct {
	XMLName xml.Name
	Body    struct {
		Operation struct {
			XMLName xml.Name
			EntryID string `xml:"entryId"`
			Result  string `xml:"result"`
		} `xml:",any"`
		Fault *struct {
			Code11   string `xml:"faultcode"`
			Reason11 string `xml:"faultstring"`
			Code12   string `xml:"Code>Value"`
			Subcode  string `xml:"Code>Subcode>Value"`
			Reason12 string `xml:"Reason>Text"`
			Detail11 detail `xml:"detail"`
			Detail12 detail `xml:"Detail"`
		}
	}
}

type detail struct {
	Calendar struct {
		Code      string `xml:"code"`
		Retryable string `xml:"retryable"`
	} `xml:"urn:example:calendar CalendarFault"`
}

func (a answer) soap(t *testing.T) said {
	t.Helper()
	var s said
	if err := xml.Unmarshal([]byte(a.body), &s); err != nil {
		t.Fatalf("the answer %d %q is no XML: %v", a.status, a.body, err)
	}
	return s
}

// fault returns "code subcode detail-code retryable".
func (a answer) fault(t *testing.T) string {
	t.Helper()
	f := a.soap(t).Body.Fault
	if f == nil {
		t.Fatalf("the answer %d %q is no Fault", a.status, a.body)
	}
	if f.Reason11+f.Reason12 == "" {
		t.Errorf("the Fault gives no reason: %s", a.body)
	}
	d := f.Detail11.Calendar
	if f.Code12 != "" {
		d = f.Detail12.Calendar
	}
	return strings.Join(strings.Fields(fmt.Sprint(f.Code11, f.Code12, " ", f.Subcode, " ", d.Code, " ", d.Retryable)), " ")
}

func TestHearingLifeOverSOAP(t *testing.T) {
	for name, envelope := range map[string]string{"SOAP 1.1": envelope11, "SOAP 1.2": envelope12} {
		t.Run(name, func(t *testing.T) {
			h := start(t, courtsim.Options{})
			message := fmt.Sprintf(envelope, messageID("m1"), notify("H-1", "3A"))
			a := h.send(message).want(t, 200)
			s := a.soap(t)
			if s.Body.Operation.XMLName != (xml.Name{Space: "urn:example:calendar", Local: "NotifyHearingResponse"}) ||
				s.Body.Operation.EntryID != "CAL-000001" || s.Body.Operation.Result != "STORED" {
				t.Errorf("answer %s", a.body)
			}
			if !strings.Contains(envelope, s.XMLName.Space) {
				t.Errorf("the answer is of version %s", s.XMLName.Space)
			}
			sum := sha256.Sum256([]byte(message))
			e := h.last()
			if e.Operation != "NotifyHearing" || e.IdempotencyKey != "m1" || e.CaseReference != "H-1" ||
				!e.Accepted || e.Result != "STORED" || e.BodySHA256 != hex.EncodeToString(sum[:]) {
				t.Errorf("ledger entry %+v", e)
			}
			again := strings.Replace(message, "<soap:Header>", "<soap:Header><cal:attempt>2</cal:attempt>", 1)
			if s := h.send(again).want(t, 200).soap(t).Body.Operation; s.Result != "DUPLICATE" || s.EntryID != "CAL-000001" {
				t.Errorf("a repeated message is answered %+v", s)
			}
			if e := h.last(); !e.Duplicate || e.Accepted || e.Result != "DUPLICATE" {
				t.Errorf("ledger entry of the duplicate is %+v", e)
			}
			h.send(fmt.Sprintf(envelope, messageID("m2"), notify("H-1", "Court &lt;2&gt;"))).want(t, 200)
			if b := h.court.Calendar()["H-1"]; b.Changes != 2 || b.Status != "booked" || b.IdempotencyKey != "m2" ||
				string(b.Fields) != `{"reference":"H-1","room":"Court \u003c2\u003e","start":"2027-03-05T10:00:00Z","status":"booked"}` {
				t.Errorf("the booking is %+v", b)
			}
			a = h.send(fmt.Sprintf(envelope, messageID("m3"), cancel("H-1"))).want(t, 200)
			if s := a.soap(t).Body.Operation; s.XMLName.Local != "CancelHearingResponse" || s.Result != "STORED" || s.EntryID != "" {
				t.Errorf("answer %s", a.body)
			}
			if s := h.send(fmt.Sprintf(envelope, messageID("m3"), cancel("H-1"))).want(t, 200).soap(t).Body.Operation; s.Result != "DUPLICATE" {
				t.Errorf("a repeated cancellation is answered %+v", s)
			}
			if b := h.court.Calendar()["H-1"]; b.Changes != 3 || b.Status != "cancelled" || !strings.Contains(string(b.Fields), "room") {
				t.Errorf("after the cancellation the booking is %+v", b)
			}
			// REST and SOAP share one calendar.
			if a := h.do(t.Context(), "GET", "/api/calendar/H-1", "", "").want(t, 200); !strings.Contains(a.body, `"cancelled"`) {
				t.Errorf("over REST it is %s", a.body)
			}
		})
	}
}

func TestBadMessagesAreRefusedOverSOAP(t *testing.T) {
	good := notify("H-1", "3A")
	for _, tt := range []struct {
		name, message string
		headers       []string
		status        int
		fault         string // "" for an answer without a SOAP message
	}{
		{"not XML", "{}", nil, 500, "soap:Client REFUSED false"},
		{"another root", "<a/>", nil, 500, "soap:VersionMismatch"},
		{"an envelope of no version", `<Envelope xmlns="urn:x"/>`, nil, 500, "soap:VersionMismatch"},
		{"no operation", fmt.Sprintf(envelope11, "", ""), nil, 500, "soap:Client REFUSED false"},
		{"two operations", fmt.Sprintf(envelope11, "", good+good), nil, 500, "soap:Client REFUSED false"},
		{"an unknown operation", fmt.Sprintf(envelope11, "", "<cal:DropHearing/>"), nil, 500, "soap:Client REFUSED false"},
		{"an operation of another namespace", fmt.Sprintf(envelope11, "", `<NotifyHearing xmlns="urn:x"/>`), nil, 500, "soap:Client REFUSED false"},
		{"no reference", fmt.Sprintf(envelope11, "", "<cal:NotifyHearing/>"), nil, 500, "soap:Client REFUSED false"},
		{"a cancellation of an unknown hearing", fmt.Sprintf(envelope11, "", cancel("H-9")), nil, 500, "soap:Client REFUSED false"},
		{"a key used for something else", fmt.Sprintf(envelope11, messageID("first"), notify("H-1", "4B")), nil, 500, "soap:Client REFUSED false"},
		{"Sender of 1.2", fmt.Sprintf(envelope12, "", "<cal:NotifyHearing/>"), nil, 400, "soap:Sender REFUSED false"},
		{"no SOAPAction", fmt.Sprintf(envelope11, "", good), []string{"SOAPAction", "-"}, 500, "soap:Client REFUSED false"},
		{"another action", fmt.Sprintf(envelope11, "", good), []string{"SOAPAction", `"urn:example:calendar/CancelHearing"`}, 500, "soap:Client REFUSED false"},
		{"another action in 1.2", fmt.Sprintf(envelope12, "", good), []string{"Content-Type", `application/soap+xml; action="urn:x"`}, 400, "soap:Sender REFUSED false"},
		{"a header block that must be understood", fmt.Sprintf(envelope11, `<x xmlns="urn:x" soap:mustUnderstand="1"/>`, good), nil, 500, "soap:MustUnderstand"},
		{"the same in 1.2", fmt.Sprintf(envelope12, `<x xmlns="urn:x" soap:mustUnderstand="true"/>`, good), nil, 500, "soap:MustUnderstand"},
		{"the content type of 1.2", fmt.Sprintf(envelope11, "", good), []string{"Content-Type", "application/soap+xml"}, 415, ""},
		{"the content type of 1.1", fmt.Sprintf(envelope12, "", good), []string{"Content-Type", "text/xml"}, 415, ""},
		{"too large", strings.Repeat(" ", 1<<20+1), nil, 413, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, courtsim.Options{})
			h.send(fmt.Sprintf(envelope11, messageID("first"), good)).want(t, 200)
			a := h.send(tt.message, tt.headers...).want(t, tt.status)
			if tt.fault == "" {
				if ct := a.header.Get("Content-Type"); ct != "text/plain; charset=utf-8" {
					t.Errorf("Content-Type is %s", ct)
				}
			} else if got := a.fault(t); got != tt.fault {
				t.Errorf("the Fault is %q, want %q", got, tt.fault)
			}
			if e := h.last(); e.Status != tt.status || e.Accepted || e.Duplicate {
				t.Errorf("ledger entry %+v", e)
			}
			if b := h.court.Calendar(); len(b) != 1 || b["H-1"].Changes != 1 {
				t.Errorf("a refused message changed the calendar: %+v", b)
			}
		})
	}
	h := start(t, courtsim.Options{})
	h.do(t.Context(), "GET", "/soap/calendar", "", "").want(t, 405)
	h.send(fmt.Sprintf(envelope11, `<cal:Agency soap:mustUnderstand="1">A</cal:Agency><x xmlns="urn:x" soap:mustUnderstand="0"/>`, good),
		"SOAPAction", `"urn:example:calendar/NotifyHearing"`).want(t, 200)
	h.send(fmt.Sprintf(envelope12, "", good), "Content-Type", `application/soap+xml; action="urn:example:calendar/NotifyHearing"`).want(t, 200)
}

func TestScriptedAnswersOverSOAP(t *testing.T) {
	for _, tt := range []struct {
		name, envelope, do string
		accepted           bool
		check              func(*testing.T, answer)
	}{
		{"a plain status", envelope11, `{"status":503,"retry_after":"2"}`, false, func(t *testing.T, a answer) {
			if a.want(t, 503); strings.Contains(a.body, "<") || a.header.Get("Retry-After") != "2" {
				t.Errorf("answer %q, Retry-After %q", a.body, a.header.Get("Retry-After"))
			}
		}},
		{"a Fault", envelope11, `{"fault":"Server"}`, false, func(t *testing.T, a answer) {
			if got, want := a.want(t, 500).fault(t), "soap:Server INTERNAL true"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}},
		{"a Fault in 1.2", envelope12, `{"fault":"Client"}`, false, func(t *testing.T, a answer) {
			if got, want := a.want(t, 400).fault(t), "soap:Sender REFUSED false"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}},
		{"busy", envelope11, `{"fault":"Busy","status":503,"retry_after":"1"}`, false, func(t *testing.T, a answer) {
			if got, want := a.want(t, 503).fault(t), "soap:Server BUSY true"; got != want || a.header.Get("Retry-After") != "1" {
				t.Errorf("got %q, want %q; Retry-After %q", got, want, a.header.Get("Retry-After"))
			}
		}},
		{"busy in 1.2", envelope12, `{"fault":"Busy"}`, false, func(t *testing.T, a answer) {
			if got, want := a.want(t, 500).fault(t), "soap:Receiver cal:Busy BUSY true"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}},
		{"a Fault inside a 200", envelope11, `{"fault":"FailedAuthentication","status":200}`, false, func(t *testing.T, a answer) {
			if got, want := a.want(t, 200).fault(t), "wsse:FailedAuthentication"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}},
		{"hangs, then a Fault", envelope11, `{"hang":"1ms","fault":"Server"}`, false, func(t *testing.T, a answer) { a.want(t, 500).fault(t) }},
		{"a lost answer", envelope11, `{"drop":"after"}`, true, func(t *testing.T, a answer) { a.wantCut(t) }},
		{"a lost request", envelope11, `{"drop":"before"}`, false, func(t *testing.T, a answer) { a.wantCut(t) }},
		{"half an answer", envelope12, `{"drop":"during"}`, true, func(t *testing.T, a answer) { a.wantCut(t) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, courtsim.Options{Faults: script(t, `[{"match":{"key":"H-1","first":1},"do":`+tt.do+`}]`)})
			message := fmt.Sprintf(tt.envelope, messageID("m1"), notify("H-1", "3A"))
			a := h.send(message)
			tt.check(t, a)
			e := h.last()
			if e.Accepted != tt.accepted || e.Status != a.status || e.Fault != 1 {
				t.Errorf("the caller saw %d; ledger entry %+v", a.status, e)
			}
			if a.err == nil && (e.Result == "") == strings.Contains(a.body, "<soap:Body>") {
				t.Errorf("the caller saw %q, the ledger's result is %q", a.body, e.Result)
			}
			again := "STORED"
			if tt.accepted {
				again = "DUPLICATE"
			}
			if got := h.send(message).want(t, 200).soap(t).Body.Operation.Result; got != again {
				t.Errorf("the repetition is answered %s, want %s", got, again)
			}
		})
	}
}

func TestAFaultOfTheScriptOverREST(t *testing.T) {
	h := start(t, courtsim.Options{Faults: script(t, `[{"match":{"first":1},"do":{"fault":"Busy"}}]`)})
	a := h.post("k", "H-1").want(t, 500)
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("Content-Type is %s", ct)
	}
}

// token is a UsernameToken of WS-Security 1.0. With a nonce its password is a
// digest: Base64(SHA-1(nonce + created + password)).
func token(username, password, nonce string, created time.Time, more string) string {
	at := created.UTC().Format(time.RFC3339)
	kind, fresh := "PasswordText", ""
	if nonce != "" {
		sum := sha1.Sum([]byte(nonce + at + password))
		password, kind = base64.StdEncoding.EncodeToString(sum[:]), "PasswordDigest"
		fresh = "<wsse:Nonce>" + base64.StdEncoding.EncodeToString([]byte(nonce)) + "</wsse:Nonce><wsu:Created>" + at + "</wsu:Created>"
	}
	return `<wsse:Security soap:mustUnderstand="1" xmlns:wsse="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"` +
		` xmlns:wsu="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd">` + more +
		`<wsse:UsernameToken><wsse:Username>` + username + `</wsse:Username>` +
		`<wsse:Password Type="http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#` + kind + `">` + password +
		`</wsse:Password>` + fresh + `</wsse:UsernameToken></wsse:Security>`
}

func TestTheUsernameTokenIsRequired(t *testing.T) {
	now := time.Now()
	expires := func(at time.Time) string {
		return "<wsu:Timestamp><wsu:Expires>" + at.UTC().Format(time.RFC3339) + "</wsu:Expires></wsu:Timestamp>"
	}
	const failed, expired = "wsse:FailedAuthentication", "wsu:MessageExpired"
	for _, tt := range []struct{ name, header, want string }{
		{"none", "", failed},
		{"digest", token("agency", "s3cret", "n1", now, ""), ""},
		{"digest with a time that is not over", token("agency", "s3cret", "n1", now, expires(now.Add(time.Hour))), ""},
		{"text", token("agency", "s3cret", "", now, ""), ""},
		{"another password", token("agency", "secret", "n1", now, ""), failed},
		{"another password as text", token("agency", "secret", "", now, ""), failed},
		{"another user", token("court", "s3cret", "n1", now, ""), failed},
		{"a nonce that was used", token("agency", "s3cret", "used", now, ""), failed},
		{"an old token", token("agency", "s3cret", "n1", now.Add(-6*time.Minute), ""), expired},
		{"a token of tomorrow", token("agency", "s3cret", "n1", now.Add(24*time.Hour), ""), expired},
		{"a time that is over", token("agency", "s3cret", "n1", now, expires(now.Add(-time.Second))), expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, courtsim.Options{Username: "agency", Password: "s3cret"})
			h.send(fmt.Sprintf(envelope11, token("agency", "s3cret", "used", now, ""), notify("H-0", "3A"))).want(t, 200)
			for _, envelope := range []string{envelope11, envelope12} {
				header := tt.header
				if tt.want == "" && envelope == envelope12 {
					header = strings.ReplaceAll(token("agency", "s3cret", "n2", now, ""), `mustUnderstand="1"`, `mustUnderstand="true"`)
				}
				a := h.send(fmt.Sprintf(envelope, header, notify("H-1", "3A")))
				if tt.want == "" {
					a.want(t, 200)
				} else if got := strings.TrimPrefix(a.fault(t), "soap:Sender "); got != tt.want {
					t.Errorf("the Fault is %q, want %q", got, tt.want)
				}
			}
			if _, stored := h.court.Calendar()["H-1"]; stored != (tt.want == "") {
				t.Errorf("stored is %v", stored)
			}
		})
	}
}

func TestTheTokenProtectsRESTAndSOAP(t *testing.T) {
	h := start(t, courtsim.Options{Token: "open sesame"})
	message := fmt.Sprintf(envelope11, "", notify("H-1", "3A"))
	h.send(message).want(t, 401)
	h.send(message, "Authorization", "Bearer open sesame").want(t, 200)
}

func TestACourtThatIsDownAnswersNoSOAP(t *testing.T) {
	h := start(t, courtsim.Options{})
	h.court.Down(true)
	h.send(fmt.Sprintf(envelope11, "", notify("H-1", "3A"))).wantCut(t)
	if l := h.court.Ledger(); len(l) != 0 {
		t.Errorf("a court that is down read %+v", l)
	}
}
