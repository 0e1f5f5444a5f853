package courtsim

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"mime"
	"net/http"
	"strings"
)

// soapPath is where the calendar is spoken to over SOAP.
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
	refusal   *reply // why it goes no further, nil if it does
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

// readSOAP reads a message into req, or says why that cannot be done.
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
	// Not of the message: its token and its time are new in every attempt.
	sum := sha256.Sum256(append([]byte(m.operation), m.fields...))
	req.digest = hex.EncodeToString(sum[:])
}

// process does what the message asks for.
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

// soapFault is a kind of Fault, as the two versions of SOAP write it.
type soapFault struct {
	code11, code12, subcode string
	code                    string // in the detail, which faults about the header have not
	retryable               bool
}

// soapFaults are the kinds that this calendar knows, also for its script.
var soapFaults = map[string]soapFault{
	"Server":               {code11: "soap:Server", code12: "soap:Receiver", code: "INTERNAL", retryable: true},
	"Client":               {code11: "soap:Client", code12: "soap:Sender", code: "REFUSED"},
	"Busy":                 {code11: "soap:Server", code12: "soap:Receiver", subcode: "cal:Busy", code: "BUSY", retryable: true},
	"MustUnderstand":       {code11: "soap:MustUnderstand", code12: "soap:MustUnderstand"},
	"VersionMismatch":      {code11: "soap:VersionMismatch", code12: "soap:VersionMismatch"},
	"FailedAuthentication": {code11: "wsse:FailedAuthentication", code12: "soap:Sender", subcode: "wsse:FailedAuthentication"},
	"MessageExpired":       {code11: "wsu:MessageExpired", code12: "soap:Sender", subcode: "wsu:MessageExpired"},
}

// fault is the answer that something went wrong; status 0 is what SOAP's
// binding to HTTP says.
func (m *call) fault(kind, reason string, status int) reply {
	f := soapFaults[kind]
	detail := ""
	if f.code != "" {
		detail = fmt.Sprintf("<cal:CalendarFault><cal:code>%s</cal:code><cal:retryable>%t</cal:retryable></cal:CalendarFault>", f.code, f.retryable)
	}
	var rep reply
	if m.version == soap12 {
		if f.subcode != "" {
			f.subcode = "<soap:Subcode><soap:Value>" + f.subcode + "</soap:Value></soap:Subcode>"
		}
		if detail != "" {
			detail = "<soap:Detail>" + detail + "</soap:Detail>"
		}
		rep = m.message(fmt.Sprintf(`<soap:Fault><soap:Code><soap:Value>%s</soap:Value>%s</soap:Code><soap:Reason><soap:Text xml:lang="en">%s</soap:Text></soap:Reason>%s</soap:Fault>`,
			f.code12, f.subcode, escape(reason), detail))
	} else {
		if detail != "" {
			detail = "<detail>" + detail + "</detail>"
		}
		rep = m.message(fmt.Sprintf("<soap:Fault><faultcode>%s</faultcode><faultstring>%s</faultstring>%s</soap:Fault>",
			f.code11, escape(reason), detail))
	}
	rep.status = http.StatusInternalServerError
	if m.version == soap12 && f.code12 == "soap:Sender" {
		rep.status = http.StatusBadRequest
	}
	rep.status, rep.result = cmp.Or(status, rep.status), "Fault "+kind
	return rep
}

// message is an answer with the given content of its Body.
func (m *call) message(body string) reply {
	contentType := "text/xml; charset=utf-8"
	if m.version == soap12 {
		contentType = "application/soap+xml; charset=utf-8"
	}
	return reply{status: http.StatusOK, contentType: contentType, body: fmt.Appendf(nil,
		`<?xml version="1.0" encoding="utf-8"?>`+"\n"+`<soap:Envelope xmlns:soap=%q xmlns:cal=%q xmlns:wsse=%q xmlns:wsu=%q><soap:Body>%s</soap:Body></soap:Envelope>`+"\n",
		m.version, SOAPNamespace, wsse, wsu, body)}
}

// plain is an answer without a SOAP message, as a proxy in front would give it.
func plain(status int, text string) reply {
	return reply{status: status, contentType: "text/plain; charset=utf-8", body: []byte(text + "\n")}
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}
