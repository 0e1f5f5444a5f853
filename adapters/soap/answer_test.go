package soap

import (
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// entry is a result with the given id, after an XML declaration.
func entry(declaration, id string) string {
	return declaration + enveloped(Version11, `<c:NotifyHearingResponse><c:entryId>`+id+`</c:entryId></c:NotifyHearingResponse>`)
}

func utf16(t *testing.T, order unicode.Endianness, bom unicode.BOMPolicy, s string) string {
	t.Helper()
	b, err := unicode.UTF16(order, bom).NewEncoder().String(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ebcdic(t *testing.T, s string) string {
	t.Helper()
	b, err := charmap.CodePage037.NewEncoder().String(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCharsetsOfAnswers(t *testing.T) {
	const latin1, cp1252 = "caf\xe9", "\x80\xe9"
	for name, tc := range map[string]struct {
		contentType, body string
		id                string // "" for none
		class             adapters.Class
		text              string // in the error
	}{
		"UTF-8":                              {body: entry("", "café"), id: "café"},
		"UTF-8 with a mark":                  {contentType: "text/xml", body: "\xef\xbb\xbf" + entry(`<?xml version="1.0" encoding="utf-8"?>`, "café"), id: "café"},
		"UTF-8 declared in other letters":    {body: entry(`<?xml version='1.0' encoding='Utf-8' standalone="yes"?>`, "café"), id: "café"},
		"ISO-8859-1 declared":                {contentType: "text/xml", body: entry(`<?xml version="1.0" encoding="ISO-8859-1"?>`, latin1), id: "café"},
		"ISO-8859-1 of Content-Type":         {contentType: "text/xml; charset=iso-8859-1", body: entry("", latin1), id: "café"},
		"Content-Type before declaration":    {contentType: `text/xml; charset="ISO-8859-1"`, body: entry(`<?xml version="1.0" encoding="UTF-8"?>`, latin1), id: "café"},
		"windows-1252":                       {contentType: "application/soap+xml; charset=Windows-1252", body: entry("", cp1252), id: "€é"},
		"UTF-16 with a mark, big":            {body: utf16(t, unicode.BigEndian, unicode.UseBOM, entry(`<?xml version="1.0" encoding="UTF-16"?>`, "café")), id: "café"},
		"UTF-16 with a mark, little":         {contentType: "text/xml; charset=utf-8", body: utf16(t, unicode.LittleEndian, unicode.UseBOM, entry("", "café")), id: "café"},
		"UTF-16 without a mark":              {contentType: "text/xml; charset=utf-16", body: utf16(t, unicode.LittleEndian, unicode.IgnoreBOM, entry("", "café")), id: "café"},
		"UTF-16BE without a mark":            {contentType: "text/xml", body: utf16(t, unicode.BigEndian, unicode.IgnoreBOM, entry("", "café")), id: "café"},
		"a bad Content-Type":                 {contentType: "text/xml; charset", body: entry("", "café"), id: "café"},
		"ISO-8859-15":                        {contentType: "text/xml; charset=ISO-8859-15", body: entry("", "\xa4\xe9"), id: "€é"},
		"windows-1250":                       {body: entry(`<?xml version="1.0" encoding="windows-1250"?>`, "\xf8"), id: "ř"},
		"Shift_JIS":                          {contentType: "text/xml; charset=Shift_JIS", body: entry("", "\x96@"), id: "法"},
		"EBCDIC":                             {contentType: "text/xml; charset=IBM037", body: ebcdic(t, entry("", "x")), id: "x"},
		"a charset in single quotes":         {contentType: "text/xml; charset='iso-8859-1'", body: entry("", latin1), id: "café"},
		"a charset that nobody knows":        {contentType: "text/xml; charset=klingon", body: entry("", "x"), class: adapters.ClassUnknown, text: "it is encoded in klingon, which is not read"},
		"Latin-1 under UTF-8, an ASCII id":   {contentType: "text/xml; charset=utf-8", body: strings.Replace(entry("", "4711"), "<c:entryId>", "<c:court>"+latin1+"</c:court><c:entryId>", 1), id: "4711"},
		"XML 1.1":                            {body: entry(`<?xml version="1.1" encoding="utf-8"?>`, "4711"), id: "4711"},
		"a control character in a value":     {body: strings.Replace(entry("", "4711"), "<c:entryId>", "<c:note>&#x1B;[1m&#0;\x01</c:note><c:entryId>", 1), id: "4711"},
		"a notice of PHP before it":          {contentType: "text/xml", body: "<br />\n<b>Notice</b>:  Undefined index: x in <b>/srv/x.php</b> on line <b>12</b><br>\n" + entry(`<?xml version="1.0" encoding="iso-8859-1"?>`, latin1), id: "café"},
		"text before it":                     {body: "Warning: 1 < 2 & more\r\n\xef\xbb\xbf" + entry("", "4711"), id: "4711"},
		"a notice of PHP after it":           {body: entry("", "4711") + "<br>\n<b>Notice</b>: x & y", id: "4711"},
		"UTF-7 declared":                     {body: entry(`<?xml version="1.0" encoding="UTF-7"?>`, "x"), class: adapters.ClassUnknown, text: "encoded in UTF-7"},
		"ISO-8859-1 without a word about it": {contentType: "text/xml", body: entry("", latin1), class: adapters.ClassDelivered}, // the id is not kept, because it cannot be read
		"MTOM":                               {contentType: `multipart/related; type="application/xop+xml"; boundary=x`, body: "--x\r\n\r\n" + entry("", "x") + "\r\n--x--", class: adapters.ClassUnknown, text: "it has several parts (MTOM or attachments), which are not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) { c.ExternalID = "cal:NotifyHearingResponse/cal:entryId" }))
			ans := exchange.Answer{Status: 200, Header: http.Header{"Content-Type": {tc.contentType}}, Body: []byte(tc.body)}
			receipt, err := a.judge(exchange.Request{Method: "POST", Target: "clinic"}, ans, hearing(`{}`))
			if tc.id != "" {
				if err != nil || receipt.Ref == nil || receipt.Ref.ExternalID != tc.id || *receipt.Ref.Version != 3 {
					t.Errorf("got %+v, %v, want the id %s", receipt.Ref, err, tc.id)
				}
				return
			}
			if tc.class == adapters.ClassDelivered && err == nil && receipt.Ref == nil {
				return
			}
			if adapters.ClassOf(err) != tc.class || err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %s, %v", adapters.ClassOf(err), err)
			}
		})
	}
}

func TestAnswersThatAreNoSOAP(t *testing.T) {
	laughs := `<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>`
	for name, tc := range map[string]struct{ body, want string }{
		"a DTD":             {`<!DOCTYPE x SYSTEM "http://169.254.169.254/x.dtd">` + entry("", "x"), "line 1, column 1: a DTD is not allowed"},
		"billion laughs":    {laughs + entry("", "&b;"), "a DTD is not allowed"},
		"an entity":         {entry("", "&nbsp;"), "invalid character entity"},
		"nested too deep":   {enveloped(Version11, strings.Repeat("<a>", 63)+strings.Repeat("</a>", 63)), "nest deeper than 64"},
		"never closed":      {strings.Repeat("<a>", 21000), "nest deeper than 64"},
		"half of it":        {strings.TrimSuffix(entry("", "x"), "</S:Envelope>"), "line 1, column 1: <S:Envelope> is not closed"},
		"closed wrongly":    {"<a>\n<b></a>", "line 2, column 4: </a> closes <b>, which was opened in line 2"},
		"two names":         {`<a:b:c/>`, "line 1, column 7: expected element name"},
		"twice":             {`<a b="1" b="2"/>`, "<a> has the attribute b twice"},
		"NUL":               {"<a>\x00</a>", "its root element is <a>, not soap:Envelope"},
		"text of 9 KiB":     {strings.Repeat("x ", 4600) + entry("", "x"), "text before soap:Envelope"},
		"no XML":            {"Service Unavailable", "it has no element"},
		"JSON":              {`{"a":1}`, "it has no element"},
		"two bodies":        {strings.Replace(entry("", "x"), "</S:Envelope>", "<S:Body/></S:Envelope>", 1), "it has more than one soap:Body"},
		"only a prologue":   {`<?xml version="1.0"?>`, "it has no element"},
		"a huge attribute":  {`<a b="` + strings.Repeat("x", 60<<10) + `"/>`, "its root element is <a>, not soap:Envelope"},
		"many declarations": {`<a ` + declarations(3000) + `/>`, "its root element is <a>, not soap:Envelope"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := readMessage(exchange.Answer{Status: 200, Body: []byte(tc.body)})
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
				t.Errorf("%d bytes were allocated for %d", grown, len(tc.body))
			}
		})
	}
	if _, err := readMessage(exchange.Answer{Status: 200, Body: []byte(enveloped(Version11, strings.Repeat("<a>", 62)+strings.Repeat("</a>", 62)))}); err != nil {
		t.Errorf("elements that nest 64 deep are refused: %v", err)
	}
}

func declarations(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ` xmlns:p%d="urn:x"`, i)
	}
	return b.String()
}

func TestAnswersThatAreNotWhole(t *testing.T) {
	long := enveloped(Version11, `<c:NotifyHearingResponse><c:entryId>e-9</c:entryId><c:filler>`+strings.Repeat("x", exchange.MaxAnswer))
	fault := fault11("S:Client", "")
	begun := func(until string) string { return fault[:strings.Index(fault, until)] }
	cut := errors.New("the connection was closed")
	for name, tc := range map[string]struct {
		status int
		body   string
		cut    error
		class  adapters.Class
		code   string
		id     string
	}{
		"a long result":             {200, long, nil, adapters.ClassDelivered, "HTTP 200", "e-9"},
		"too long inside the id":    {200, long[:strings.Index(long, "-9</c:entryId>")], nil, adapters.ClassDelivered, "HTTP 200", ""},
		"a result cut off":          {200, long, cut, adapters.ClassUnknown, "HTTP 200", ""},
		"cut inside the envelope":   {200, long[:300], cut, adapters.ClassUnknown, "HTTP 200", ""},
		"long, but no SOAP":         {200, strings.Repeat("x", exchange.MaxAnswer), nil, adapters.ClassUnknown, "HTTP 200", ""},
		"a fault without its text":  {500, begun("because"), cut, adapters.ClassPermanent, "HTTP 500 soap:Client", ""},
		"a fault without its code":  {500, begun("lient</"), cut, adapters.ClassTransient, "HTTP 500", ""},
		"a fault cut off, HTTP 200": {200, begun("because"), cut, adapters.ClassPermanent, "HTTP 200 soap:Client", ""},
		"nothing of HTTP 202":       {202, "", cut, adapters.ClassUnknown, "HTTP 202", ""},
		"cut off behind its end":    {200, entry("", "e-9"), cut, adapters.ClassDelivered, "HTTP 200", "e-9"},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) { c.ExternalID = "NotifyHearingResponse/entryId" }))
			ans := exchange.Answer{Status: tc.status, Header: http.Header{}, Body: []byte(tc.body), Partial: true, Cut: tc.cut}
			receipt, err := a.judge(exchange.Request{Method: "POST", Target: "clinic"}, ans, hearing(`{}`))
			if adapters.ClassOf(err) != tc.class || receipt.Code != tc.code {
				t.Errorf("got %s, %q, want %s, %q: %v", adapters.ClassOf(err), receipt.Code, tc.class, tc.code, err)
			}
			id := ""
			if receipt.Ref != nil {
				id = receipt.Ref.ExternalID
			}
			if id != tc.id {
				t.Errorf("id %q, want %q", id, tc.id)
			}
		})
	}
}

// The element that an entry of answers needs may come after the end of the part that
// was read.
func TestAnswersThatEndBeforeTheElementOfAnEntry(t *testing.T) {
	filler := `<c:filler>` + strings.Repeat("x", exchange.MaxAnswer)
	result := func(begin string) string { return enveloped(Version11, `<c:NotifyHearingResponse>`+begin+filler) }
	fault := fault11("S:Client", retryable)
	begun := func(until string) string { return fault[:strings.Index(fault, until)] }
	cut := errors.New("the connection was closed")
	for name, tc := range map[string]struct {
		status int
		body   string
		cut    error
		rules  []Answer
		class  adapters.Class
	}{
		"a result, too long":                   {200, result(""), nil, answers, adapters.ClassUnknown},
		"a result that may be a duplicate":     {200, result(""), nil, answers[5:6], adapters.ClassDelivered},
		"a result that was told before":        {200, result(`<c:result>STORED</c:result>`), nil, []Answer{{Path: "NotifyHearingResponse/result", Value: "REFUSED", Class: "permanent"}}, adapters.ClassDelivered},
		"a fault that can be tried again":      {500, begun("<x:retryable"), cut, answers, adapters.ClassUnknown},
		"a fault whose detail was read":        {500, begun("</S:Fault>"), cut, answers, adapters.ClassTransient},
		"a fault, the entry is for others":     {500, begun("<x:retryable"), cut, answers[1:2], adapters.ClassPermanent},
		"a fault, the entry is about a result": {500, begun("<x:retryable"), cut, answers[5:6], adapters.ClassPermanent},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) { c.Answers = tc.rules }))
			ans := exchange.Answer{Status: tc.status, Header: http.Header{}, Body: []byte(tc.body), Partial: true, Cut: tc.cut}
			_, err := a.judge(exchange.Request{Method: "POST", Target: "clinic"}, ans, hearing(`{}`))
			if adapters.ClassOf(err) != tc.class {
				t.Errorf("got %s, want %s: %v", adapters.ClassOf(err), tc.class, err)
			}
		})
	}
}

func TestExternalID(t *testing.T) {
	for name, tc := range map[string]struct{ path, body, want string }{
		"found":            {"cal:A/cal:id", `<c:A><c:id> 4711 </c:id></c:A>`, "4711"},
		"any namespace":    {"A/id", `<A><c:id>4711</c:id></A>`, "4711"},
		"text of children": {"A", `<A><b>47</b>1<![CDATA[1]]></A>`, "4711"},
		"other namespace":  {"cal:A/cal:id", `<c:A><id>4711</id></c:A>`, ""},
		"the second one":   {"A/id", `<A><id/><id>4711</id></A>`, "4711"},
		"in a second A":    {"A/id", `<A/><A><id>4711</id></A>`, "4711"},
		"known already":    {"A", `<A>ext-7</A>`, ""},
		"empty":            {"A", `<A/>`, ""},
		"too long":         {"A", `<A>` + strings.Repeat("x", 513) + `</A>`, ""},
		"with a newline":   {"A", "<A>a\nb</A>", ""},
		"of a duplicate":   {"A/id", `<A><id>4711</id><dup/></A>`, "4711"},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) {
				c.ExternalID = tc.path
				c.Answers = []Answer{{Path: "A/dup", Class: "duplicate"}}
			}))
			ans := exchange.Answer{Status: 200, Header: http.Header{}, Body: []byte(enveloped(Version12, tc.body))}
			receipt, err := a.judge(exchange.Request{Method: "POST", Target: "clinic"}, ans, hearing(`{}`))
			got := ""
			if receipt.Ref != nil {
				got = receipt.Ref.ExternalID
			}
			if got != tc.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}
