package soap

import (
	"net/http"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// FuzzAnswer reads any bytes as an answer. There is no panic, all texts and codes can
// be stored, and only a SOAP message, or an answer that need not be one, is a success.
func FuzzAnswer(f *testing.F) {
	for _, body := range []string{
		"", "<", "\xff\xfe<\x00", "\xfe\xff", "<a/>", "<?xml version='1.0' encoding='latin1'?><a>\xe9</a>",
		fault11("S:Client", retryable), fault12("S:Sender", "c:Busy", "sec:FailedCheck"), entry("", "4711"),
		enveloped(Version12, "<c:NotifyHearingResponse><c:result>DUPLICATE</c:result></c:NotifyHearingResponse>"),
		strings.Repeat("<a>", 70), `<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`, fault11("S:Client", "")[:280], `<a:b xmlns:a=""/>`, `<:a/>`, `<a:/>`, `<xmlns:a/>`,
	} {
		for _, contentType := range []string{"", "text/xml; charset=utf-16", "multipart/related; boundary=x", "text/xml; charset=\x00"} {
			f.Add(500, contentType, []byte(body), false)
			f.Add(200, contentType, []byte(body), true)
		}
	}
	c := hearings()
	c.Answers, c.ExternalID = answers, "NotifyHearingResponse/entryId"
	a, err := New(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = a.Close() })
	f.Fuzz(func(t *testing.T, status int, contentType string, body []byte, partial bool) {
		if len(body) > exchange.MaxAnswer {
			return
		}
		ans := exchange.Answer{Status: status, Header: http.Header{"Content-Type": {contentType}}, Body: body, Partial: partial}
		receipt, err := a.judge(exchange.Request{Method: "POST", Target: "clinic"}, ans, hearing(`{}`))
		if !storable(receipt.Code) || len(receipt.Code) > 150 || !strings.HasPrefix(receipt.Code, ans.Code()) {
			t.Errorf("code %q", receipt.Code)
		}
		if err != nil && (!storable(err.Error()) || len(err.Error()) > 1024) {
			t.Errorf("error %q", err)
		}
		if receipt.Ref != nil && (!storable(receipt.Ref.ExternalID) || len(receipt.Ref.ExternalID) > adapters.MaxRef) {
			t.Errorf("id %q", receipt.Ref.ExternalID)
		}
		if _, readErr := readMessage(ans); readErr != nil && err == nil && (status != http.StatusAccepted || len(body) > 0) {
			t.Errorf("success for what is no SOAP message: %v", readErr)
		}
	})
}

func storable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// FuzzTemplate compiles any text. It is refused with a position, or its envelopes are
// well-formed for any value.
func FuzzTemplate(f *testing.F) {
	for _, body := range []string{
		"<a/>", "<cal:a b='{fields.v}'>{fields.v?}</cal:a>", "<a><b lockstep:each='fields.l?' lockstep:if='item.x'>{item.x}</b></a>",
		"<a xmlns='urn:x' xmlns:y='urn:y'><y:b y:c=''/></a>", "<a><![CDATA[{key}]]></a>", "<a>&#xD;&#x9;&quot;</a>", "<a:b:c/>", "<a b=''\n/>", "<a xmlns:b=''><b:c/></a>",
		"<xml:a/>", "<a xml:lang='x'/>", "<xmlns:a/>", "<a xmlns:xmlns='urn:x'/>", "<a soap:mustUnderstand='1'/>", "<a><!-- -- --></a>", "<a -=''/>",
	} {
		f.Add(body, "<>&\"'\r\n")
	}
	f.Fuzz(func(t *testing.T, body, value string) {
		c := hearings()
		c.Body = body
		a, err := New(c)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "body: ") {
				t.Fatalf("%v does not name the field", err)
			}
			return
		}
		defer func() { _ = a.Close() }()
		msg := hearing(`{"v":"x","l":[{"x":1},"y"]}`)
		msg.Key = value
		document, err := render(t, a, msg)
		if err != nil {
			if adapters.ClassOf(err) != adapters.ClassPermanent {
				t.Errorf("class %s: %v", adapters.ClassOf(err), err)
			}
			return
		}
		wellFormed(t, document)
		if _, err := parseXML(document, nil, false); err != nil {
			t.Errorf("%v in\n%s", err, document)
		}
	})
}
