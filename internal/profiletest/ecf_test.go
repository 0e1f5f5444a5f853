package profiletest

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
)

// xmllint checks files against the schema of the envelope and of ECF. The error has what xmllint says.
func xmllint(ctx context.Context, files ...string) error {
	args := append([]string{"--noout", "--nonet", "--huge", "--schema", "testdata/ecf5/Envelope.xsd"}, files...)
	if out, err := exec.CommandContext(ctx, "xmllint", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("xmllint: %w\n%s", err, out)
	}
	return nil
}

// envelope is what the court reads of a message.
type envelope struct {
	Token struct {
		Username, Nonce, Created string
		Password                 string
	} `xml:"Header>Security>UsernameToken"`
	Message struct {
		ID    string `xml:"DocumentIdentification>IdentificationID"`
		Case  string `xml:"Case>CaseTrackingID"`
		Court string `xml:"CaseCourt>OrganizationIdentification>IdentificationID"`
		Event entry  `xml:"icalendar>vcalendar>components>vevent>properties"`
	} `xml:"Body>NotifyCourtDateRequest>NotifyCourtDateMessage"`
}

// entry is a hearing in the court's calendar.
type entry struct {
	UID      string `xml:"uid>text"`
	Sequence int64  `xml:"sequence>integer"`
	Status   string `xml:"status>text"`
	Start    string `xml:"dtstart>date-time"`
	Day      string `xml:"dtstart>date"`
	Duration string `xml:"duration>duration"`
	Summary  string `xml:"summary>text"`
	Location string `xml:"location>text"`
	Remarks  string `xml:"description>text"`
}

// court is a CourtSchedulingMDE: it takes what the schema allows, each document once, and no event that is older
// than what it has.
type court struct {
	t         *testing.T
	dir       string
	checks    bool // each message against the schema, before the answer
	mu        sync.Mutex
	received  []string // files of the messages
	documents map[string]bool
	nonces    map[string]bool
	entries   map[string]entry
	doubles   int
	lose      func(n int) bool // whether the answer to the n-th message is lost, if it is a success
}

func newCourt(t *testing.T, checks bool) (*court, string) {
	t.Helper()
	c := &court{t: t, dir: t.TempDir(), checks: checks, documents: map[string]bool{}, nonces: map[string]bool{}, entries: map[string]entry{}, lose: func(int) bool { return false }}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	return c, server.URL + "/CourtSchedulingMDE.svc"
}

func (c *court) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	file := filepath.Join(c.dir, strconv.Itoa(len(c.received))+".xml")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		c.t.Error(err)
	}
	c.received = append(c.received, file)
	if c.checks {
		if err := xmllint(r.Context(), file); err != nil {
			c.t.Errorf("%v\n%s", err, body)
			c.says(w, "Authenticated", "InvalidSchema", false)
			return
		}
	}
	var e envelope
	if err := xml.Unmarshal(body, &e); err != nil {
		c.t.Error(err)
	}
	nonce, _ := base64.StdEncoding.DecodeString(e.Token.Nonce)
	digest := sha1.Sum(append(nonce, e.Token.Created+ecfPassword...))
	if e.Token.Username != ecfUser || e.Token.Password != base64.StdEncoding.EncodeToString(digest[:]) || c.nonces[e.Token.Nonce] {
		c.t.Error("the token is wrong, or its nonce was sent before")
		c.says(w, "Not Authenticated", "Other", false)
		return
	}
	c.nonces[e.Token.Nonce] = true
	code := c.takes(e)
	if code == "Success" && c.lose(len(c.received)) {
		panic(http.ErrAbortHandler)
	}
	c.says(w, "Authenticated", code, false)
}

// takes stores a message, and returns the code of the answer.
func (c *court) takes(e envelope) string {
	m := e.Message
	switch known, ok := c.entries[m.Event.UID]; {
	case c.documents[m.ID]:
		c.doubles++
		return "DuplicateMessage"
	case ok && m.Event.Sequence <= known.Sequence:
		c.t.Errorf("%s: sequence %d came after %d", m.Event.UID, m.Event.Sequence, known.Sequence)
		return "DataError"
	}
	c.documents[m.ID] = true
	c.entries[m.Event.UID] = m.Event
	return "Success"
}

func (c *court) says(w http.ResponseWriter, credentials, code string, resend bool) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	_, _ = io.WriteString(w, messageStatus(credentials, code, resend))
}

// messageStatus is an answer of NotifyCourtDate.
func messageStatus(credentials, code string, resend bool) string {
	number := "0"
	if code != "Success" {
		number = "-1"
	}
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?>
<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"><soap:Body><wrapper:NotifyCourtDateResponse xmlns:wrapper="https://docs.oasis-open.org/legalxml-courtfiling/ns/v5.0/MessageWrappers" xmlns:cbrn="http://release.niem.gov/niem/domains/cbrn/4.0/">
<cbrn:MessageStatus cbrn:systemSimulatedIndicator="true"><cbrn:SystemEventDateTime>2027-02-01T09:00:00Z</cbrn:SystemEventDateTime><cbrn:SystemOperatingModeCode>Ops</cbrn:SystemOperatingModeCode>
<cbrn:CredentialsAuthenticatedCode>%s</cbrn:CredentialsAuthenticatedCode><cbrn:MessageStatusCode>%s</cbrn:MessageStatusCode>
<cbrn:MessageHandlingError><cbrn:ErrorCodeText>%s</cbrn:ErrorCodeText></cbrn:MessageHandlingError><cbrn:ResendRequestIndicator>%t</cbrn:ResendRequestIndicator></cbrn:MessageStatus>
</wrapper:NotifyCourtDateResponse></soap:Body></soap:Envelope>`, credentials, code, number, resend)
}

// has fails the test if the court does not have the hearing as planned.
func (c *court) has(p plan) {
	c.t.Helper()
	text := func(name string) string { s, _ := p.payload[name].(string); return s }
	at, dateOnly := p.at(c.t)
	want := entry{
		UID: "hearing-" + p.key + "@agency.example.gov", Sequence: p.version, Status: "CONFIRMED",
		Summary: text("title"), Location: text("location"), Remarks: text("remarks"),
	}
	if p.cancelled {
		want.Status = "CANCELLED"
	}
	if p.payload["sealed"] == true {
		want.Summary, want.Remarks = "", ""
	}
	if minutes, ok := p.payload["minutes"]; ok && !dateOnly {
		want.Duration = fmt.Sprintf("PT%dM", minutes)
	}
	if dateOnly {
		want.Day = at.Format(time.DateOnly)
	} else {
		want.Start = at.Format("2006-01-02T15:04:05Z")
	}
	if got := c.entries[want.UID]; got != want {
		c.t.Errorf("the court has\n%+v, want\n%+v", got, want)
	}
}

// awkward are characters of texts: markup, quotes, other scripts, spaces, and characters of more than one UTF-16 unit.
const awkward = "abcdefghijklmnopqrstuvwxyz ABCDEF 0123456789 <>&\"'{}[]()]]> éßøŁżΩЖш王日本 \t\n – … 😀𝔸"

func TestECFTakesEveryHearing(t *testing.T) {
	c, url := newCourt(t, false)
	s := newSender(open(t, "ecf5", url))
	for seed := range uint64(200) {
		p := random(seed, awkward)
		s.sendAll(t, p.events)
		c.has(p)
	}
	if err := xmllint(t.Context(), c.received...); err != nil {
		t.Error(err)
	}
	t.Logf("%d messages of 200 hearings", len(c.received))
}

// What the profile is careful of is what the schema refuses.
func TestWhatTheSchemaOfECFRefuses(t *testing.T) {
	c, url := newCourt(t, true)
	newSender(open(t, "ecf5", url)).sendAll(t, []outbox.Event{one})
	message, err := os.ReadFile(c.received[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"a dtstamp without a fraction": {".000Z</xcal:utc-date-time>", "Z</xcal:utc-date-time>"},
		"a start with an offset":       {"Z</xcal:date-time>", "-04:00</xcal:date-time>"},
		"an event without components":  {"<xcal:components></xcal:components>", ""},
		"a duration in weeks":          {"<xcal:properties>", "<xcal:properties><xcal:duration><xcal:duration>P1W</xcal:duration></xcal:duration>"},
		"a case without augmentation":  {"<ecf:CaseAugmentation>", "<!--<ecf:CaseAugmentation>"},
		"no document id":               {"nc:DocumentIdentification>", "nc:DocumentFileControlID>"},
		"another order of elements":    {"<ecf:DocumentFiler>", "<nc:DocumentTitleText>x</nc:DocumentTitleText><ecf:DocumentFiler/><ecf:SendingMDELocationID/><ecf:DocumentFiler>"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := bytes.ReplaceAll(message, []byte(change[0]), []byte(change[1]))
			if bytes.Equal(changed, message) {
				t.Fatalf("the message has no %q:\n%s", change[0], message)
			}
			file := filepath.Join(t.TempDir(), "message.xml")
			if err := os.WriteFile(file, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := xmllint(t.Context(), file); err == nil {
				t.Errorf("the schema takes it:\n%s", changed)
			}
		})
	}
}

// The result of a message is in its body, with HTTP 200.
func TestWhatAnAnswerOfECFMeans(t *testing.T) {
	const yes, no = "Authenticated", "Not Authenticated"
	for _, tc := range []struct {
		credentials, code string
		resend            bool
		want              adapters.Class
	}{
		{yes, "Success", false, adapters.ClassDelivered},
		{yes, "DuplicateMessage", false, adapters.ClassDuplicate},
		{yes, "DuplicateMessage", true, adapters.ClassDuplicate},
		{yes, "SystemError", false, adapters.ClassTransient},
		{yes, "DeviceError", false, adapters.ClassTransient},
		{yes, "UnknownError", false, adapters.ClassTransient},
		{yes, "InvalidSchema", false, adapters.ClassPermanent},
		{yes, "DataError", false, adapters.ClassPermanent},
		{yes, "MessageError", false, adapters.ClassPermanent},
		{yes, "ActivityCodeFailure", false, adapters.ClassPermanent},
		{yes, "Other", false, adapters.ClassPermanent},
		{yes, "DataError", true, adapters.ClassTransient},
		{yes, "ErrorAcknowledgement", false, adapters.ClassUnknown},
		{no, "Other", false, adapters.ClassAuth},
		{no, "Success", false, adapters.ClassAuth},
	} {
		t.Run(strings.Join([]string{tc.credentials, tc.code, strconv.FormatBool(tc.resend)}, " "), func(t *testing.T) {
			answer := messageStatus(tc.credentials, tc.code, tc.resend)
			file := filepath.Join(t.TempDir(), "answer.xml")
			if err := os.WriteFile(file, []byte(answer), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := xmllint(t.Context(), file); err != nil {
				t.Fatal(err)
			}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/xml; charset=utf-8")
				_, _ = io.WriteString(w, answer)
			}))
			defer server.Close()
			receipt, err := newSender(open(t, "ecf5", server.URL)).send(t, one)
			got := adapters.ClassDelivered
			switch {
			case err != nil:
				got = adapters.ClassOf(err)
			case receipt.Duplicate:
				got = adapters.ClassDuplicate
			}
			if got != tc.want {
				t.Errorf("class %s (%v), want %s", got, err, tc.want)
			}
		})
	}
}
