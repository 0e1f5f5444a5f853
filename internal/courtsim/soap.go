package courtsim

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"mime"
	"net/http"
	"strings"
)

// soapPath is the path of the calendar over SOAP.
const soapPath = "/soap/calendar"

// SOAPNamespace is the namespace of the calendar's operations over SOAP.
const SOAPNamespace = "urn:example:calendar"

// Namespaces of the envelopes (SOAP 1.1 and 1.2), of WS-Addressing 1.0 and of
// WS-Security 1.0.
const (
	soap11 = "http://schemas.xmlsoap.org/soap/envelope/"
	soap12 = "http://www.w3.org/2003/05/soap-envelope"
	wsa    = "http://www.w3.org/2005/08/addressing"
	wsse   = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
	wsu    = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
)

// The operations.
const (
	notifyHearing = "NotifyHearing"
	cancelHearing = "CancelHearing"
)

// call is a SOAP message as the court read it.
type call struct {
	version   string // soap11 or soap12
	operation string
	security  *security
	fields    []byte // of the operation, as a JSON object
	refusal   *reply // answer to a message that cannot be processed, nil for others
}

// envelope is what the court reads of a SOAP message.
type envelope struct {
	XMLName xml.Name
	Header  struct {
		MessageID string    `xml:"http://www.w3.org/2005/08/addressing MessageID"`
		Security  *security `xml:"http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd Security"`
		Blocks    []struct {
			XMLName xml.Name
			Attrs   []xml.Attr `xml:",any,attr"`
		} `xml:",any"`
	} `xml:"Header"`
	Body struct {
		Operations []struct {
			XMLName xml.Name
			Fields  []struct {
				XMLName xml.Name
				Text    string `xml:",chardata"`
			} `xml:",any"`
		} `xml:",any"`
	} `xml:"Body"`
}

// readSOAP reads a message into req. A message that cannot be processed gets a refusal.
func readSOAP(r *http.Request, req *request) {
	m := &call{version: soap11}
	req.soap = m
	refuse := func(kind, format string, args ...any) {
		m.refusal = new(m.fault(kind, fmt.Sprintf(format, args...), 0))
	}
	if r.Method != http.MethodPost {
		m.refusal = new(plain(http.StatusMethodNotAllowed, "SOAP messages come by POST."))
		return
	}
	var e envelope
	if err := xml.Unmarshal(req.body, &e); err != nil {
		refuse("Client", "The message is not XML: %v.", err)
		return
	}
	mediaType, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	action, wanted := strings.Trim(r.Header.Get("SOAPAction"), `"`), "text/xml"
	if e.XMLName.Space == soap12 {
		m.version = soap12
		action, wanted = params["action"], "application/soap+xml"
	}
	req.key = strings.TrimPrefix(strings.TrimSpace(e.Header.MessageID), "urn:uuid:")
	m.security = e.Header.Security
	switch {
	case e.XMLName.Local != "Envelope" || e.XMLName.Space != m.version:
		refuse("VersionMismatch", "The message is not an envelope of SOAP 1.1 or 1.2.")
	case mediaType != wanted:
		m.refusal = new(plain(http.StatusUnsupportedMediaType, "This message's Content-Type is "+wanted+"."))
	case m.version == soap11 && r.Header.Values("SOAPAction") == nil:
		refuse("Client", "The header SOAPAction is missing.")
	case len(e.Body.Operations) != 1:
		refuse("Client", "The Body holds %d elements, not one operation.", len(e.Body.Operations))
	}
	for _, b := range e.Header.Blocks {
		if b.XMLName.Space == wsa || b.XMLName.Space == SOAPNamespace {
			continue
		}
		for _, a := range b.Attrs {
			if a.Name == (xml.Name{Space: m.version, Local: "mustUnderstand"}) && (a.Value == "1" || a.Value == "true") {
				refuse("MustUnderstand", "The header block %s is not known here.", b.XMLName.Local)
			}
		}
	}
	if m.refusal != nil {
		return
	}
	op := e.Body.Operations[0]
	m.operation = op.XMLName.Local
	switch {
	case op.XMLName.Space != SOAPNamespace || m.operation != notifyHearing && m.operation != cancelHearing:
		refuse("Client", "The operation %s is not known here.", m.operation)
	case action != "" && action != SOAPNamespace+"/"+m.operation:
		refuse("Client", "The action is not the one of %s.", m.operation)
	}
	fields := map[string]string{}
	for _, f := range op.Fields {
		fields[f.XMLName.Local] = f.Text
	}
	req.caseRef = fields["reference"]
	var err error
	if m.fields, err = json.Marshal(fields); err != nil {
		refuse("Server", "The message could not be kept as JSON.")
	}
	// The digest is not of the whole message, because its token and time are new in
	// every attempt.
	req.digest = fmt.Sprintf("%x", sha256.Sum256(append([]byte(m.operation), m.fields...)))
}

// process applies the message to the calendar.
func (m *call) process(cal *calendar, req request) reply {
	switch m.operation {
	case cancelHearing:
		req.method, req.body, req.id = http.MethodDelete, nil, req.caseRef
		if b := cal.byCase[req.caseRef]; b != nil {
			req.id = b.ID
		}
		req.path = "/api/calendar/" + req.id
	default:
		req.method, req.body, req.path = http.MethodPost, m.fields, "/api/calendar"
	}
	rep := cal.apply(req, http.StatusOK)
	if !rep.accepted && !rep.duplicate {
		return m.fault("Client", rep.detail, 0)
	}
	result, entry := "STORED", ""
	if rep.duplicate {
		result = "DUPLICATE"
	}
	if m.operation == notifyHearing {
		entry = "<cal:entryId>" + escape(rep.id) + "</cal:entryId>"
	}
	answer := m.message(fmt.Sprintf("<cal:%[1]sResponse>%[2]s<cal:result>%[3]s</cal:result></cal:%[1]sResponse>", m.operation, entry, result))
	answer.accepted, answer.duplicate, answer.result = rep.accepted, rep.duplicate, result
	return answer
}

// soapFault is a kind of Fault in both versions of SOAP.
type soapFault struct {
	code11, code12, subcode string
	code                    string // in the detail; faults about the header have none
	retryable               bool
}

// soapFaults are the kinds that the calendar and its script know.
var soapFaults = map[string]soapFault{
	"Server":               {code11: "soap:Server", code12: "soap:Receiver", code: "INTERNAL", retryable: true},
	"Client":               {code11: "soap:Client", code12: "soap:Sender", code: "REFUSED"},
	"Busy":                 {code11: "soap:Server", code12: "soap:Receiver", subcode: "cal:Busy", code: "BUSY", retryable: true},
	"MustUnderstand":       {code11: "soap:MustUnderstand", code12: "soap:MustUnderstand"},
	"VersionMismatch":      {code11: "soap:VersionMismatch", code12: "soap:VersionMismatch"},
	"FailedAuthentication": {code11: "wsse:FailedAuthentication", code12: "soap:Sender", subcode: "wsse:FailedAuthentication"},
	"MessageExpired":       {code11: "wsu:MessageExpired", code12: "soap:Sender", subcode: "wsu:MessageExpired"},
}

// fault is an answer with a Fault. Status 0 means the status of SOAP's binding to
// HTTP.
func (m *call) fault(kind, reason string, status int) reply {
	f := soapFaults[kind]
	tag, detail, subcode := "detail", "", ""
	if m.version == soap12 {
		tag = "soap:Detail"
	}
	if f.code != "" {
		detail = fmt.Sprintf("<%[1]s><cal:CalendarFault><cal:code>%[2]s</cal:code><cal:retryable>%[3]t</cal:retryable></cal:CalendarFault></%[1]s>", tag, f.code, f.retryable)
	}
	if f.subcode != "" {
		subcode = "<soap:Subcode><soap:Value>" + f.subcode + "</soap:Value></soap:Subcode>"
	}
	usual := http.StatusInternalServerError
	body := fmt.Sprintf("<soap:Fault><faultcode>%s</faultcode><faultstring>%s</faultstring>%s</soap:Fault>", f.code11, escape(reason), detail)
	if m.version == soap12 {
		body = fmt.Sprintf(`<soap:Fault><soap:Code><soap:Value>%s</soap:Value>%s</soap:Code><soap:Reason><soap:Text xml:lang="en">%s</soap:Text></soap:Reason>%s</soap:Fault>`,
			f.code12, subcode, escape(reason), detail)
		if f.code12 == "soap:Sender" {
			usual = http.StatusBadRequest
		}
	}
	rep := m.message(body)
	rep.status, rep.result = cmp.Or(status, usual), "Fault "+kind
	return rep
}

// message is an answer with this content of its Body.
func (m *call) message(body string) reply {
	contentType := "text/xml; charset=utf-8"
	if m.version == soap12 {
		contentType = "application/soap+xml; charset=utf-8"
	}
	return reply{status: http.StatusOK, contentType: contentType, body: fmt.Appendf(nil,
		`<?xml version="1.0" encoding="utf-8"?>`+"\n"+`<soap:Envelope xmlns:soap=%q xmlns:cal=%q xmlns:wsse=%q xmlns:wsu=%q><soap:Body>%s</soap:Body></soap:Envelope>`+"\n",
		m.version, SOAPNamespace, wsse, wsu, body)}
}

// plain is an answer without a SOAP message, like that of a proxy.
func plain(status int, text string) reply {
	return reply{status: status, contentType: "text/plain; charset=utf-8", body: []byte(text + "\n")}
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}
