package soap

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// fault11 is a SOAP 1.1 fault; S, c, sec and u are declared around it.
func fault11(code, detail string) string {
	return enveloped(Version11, `<S:Fault><faultcode>`+code+`</faultcode><faultstring>because</faultstring>`+detail+`</S:Fault>`)
}

// fault12 is a SOAP 1.2 fault with a chain of subcodes.
func fault12(code string, subcodes ...string) string {
	before, after := "", ""
	for _, sub := range subcodes {
		before += `<S:Subcode><S:Value>` + sub + `</S:Value>`
		after += `</S:Subcode>`
	}
	return enveloped(Version12, `<S:Fault><S:Code><S:Value>`+code+`</S:Value>`+before+after+`</S:Code><S:Reason>`+
		`<S:Text xml:lang="de">weil</S:Text><S:Text xml:lang="en-US">because</S:Text></S:Reason>`+
		`<S:Detail><c:CalendarFault><c:code>7</c:code><c:retryable>true</c:retryable></c:CalendarFault></S:Detail></S:Fault>`)
}

const retryable = `<detail><x:CalendarFault xmlns:x="` + calendar + `"><x:code>7</x:code><x:retryable> true
	</x:retryable></x:CalendarFault></detail>`

var answers = []Answer{
	{Code: "Client", Path: "detail/cal:CalendarFault/cal:retryable", Value: "true", Class: "transient"},
	{Code: "soap:Server", Path: "detail/cal:CalendarFault/cal:code", Value: "409", Class: "duplicate"},
	{Subcode: "cal:Busy", Class: "throttled"},
	{Code: "cal:Gone", Class: "permanent"},
	{Code: "Server.Database", Class: "conflict"},
	{Path: "cal:NotifyHearingResponse/cal:result", Value: "DUPLICATE", Class: "duplicate"},
	{Path: "NotifyHearingResponse/error", Class: "permanent"},
}

func TestClassesOfAnswers(t *testing.T) {
	const (
		result   = `<c:NotifyHearingResponse><c:entryId>e-9</c:entryId><c:result>%</c:result></c:NotifyHearingResponse>`
		busyText = "<html><h1>503 Service Unavailable</h1></html>"
	)
	stored, duplicate := strings.Replace(result, "%", "STORED", 1), strings.Replace(result, "%", "DUPLICATE", 1)
	oldPrefix := func(s string) string { return strings.NewReplacer("S:", "SOAP-ENV:", ":S=", ":SOAP-ENV=").Replace(s) }
	for name, tc := range map[string]struct {
		status  int
		retry   string
		body    string
		class   adapters.Class
		code    string // of the receipt; default: HTTP and the status
		rules   []Answer
		outcome map[int]string
	}{
		"1.1 Server":                  {status: 500, body: fault11("S:Server", ""), class: "transient", code: "HTTP 500 soap:Server"},
		"1.1 Client":                  {status: 500, body: fault11("S:Client", ""), class: "permanent", code: "HTTP 500 soap:Client"},
		"1.1 VersionMismatch":         {status: 500, body: fault11("S:VersionMismatch", ""), class: "permanent", code: "HTTP 500 soap:VersionMismatch"},
		"1.1 MustUnderstand":          {status: 500, body: fault11("S:MustUnderstand", ""), class: "permanent", code: "HTTP 500 soap:MustUnderstand"},
		"1.2 Receiver":                {status: 500, body: fault12("S:Receiver"), class: "transient", code: "HTTP 500 soap:Receiver"},
		"1.2 Sender":                  {status: 400, body: fault12("S:Sender"), class: "permanent", code: "HTTP 400 soap:Sender"},
		"1.2 DataEncodingUnknown":     {status: 500, body: fault12("S:DataEncodingUnknown"), class: "permanent", code: "HTTP 500 soap:DataEncodingUnknown"},
		"another prefix":              {status: 500, body: oldPrefix(fault11("S:Client", "")), class: "permanent", code: "HTTP 500 soap:Client"},
		"a default namespace":         {status: 500, body: `<Envelope xmlns="` + soap11 + `"><Body><Fault><faultcode xmlns="">Client</faultcode></Fault></Body></Envelope>`, class: "permanent", code: "HTTP 500 Client"},
		"a prefix declared at hand":   {status: 500, body: enveloped(Version11, `<S:Fault><faultcode xmlns:q="`+soap11+`"> q:Client </faultcode></S:Fault>`), class: "permanent", code: "HTTP 500 soap:Client"},
		"a prefix not declared":       {status: 500, body: fault11("SOAP-ENV:Client", ""), class: "permanent", code: "HTTP 500 Client"},
		"a foreign Client":            {status: 500, body: fault11("c:Client", ""), class: "transient", code: "HTTP 500 cal:Client"},
		"the dotted Client":           {status: 500, body: fault11("S:Client.Authentication", ""), class: "permanent", code: "HTTP 500 soap:Client.Authentication"},
		"a dotted Server":             {status: 500, body: fault11("S:Server.Busy", ""), class: "transient", code: "HTTP 500 soap:Server.Busy"},
		"the code 500":                {status: 500, body: fault11("500", ""), class: "transient", code: "HTTP 500 500"},
		"no code":                     {status: 500, body: enveloped(Version11, `<S:Fault/>`), class: "transient", code: "HTTP 500 fault"},
		"a code of line noise":        {status: 500, body: fault11("a\tb \u202ec:"+strings.Repeat("x", 500), ""), class: "transient", code: "HTTP 500 " + strings.Repeat("x", 77) + "…"},
		"inside HTTP 200":             {status: 200, body: fault11("S:Client", ""), class: "permanent", code: "HTTP 200 soap:Client"},
		"inside HTTP 202":             {status: 202, body: fault11("S:Server", ""), class: "transient", code: "HTTP 202 soap:Server"},
		"1.2 fault, asked in 1.1":     {status: 200, body: fault12("S:Sender"), class: "permanent", code: "HTTP 200 soap:Sender"},
		"1.1 fault in a 1.2 envelope": {status: 500, body: enveloped(Version12, `<S:Fault><faultcode>S:Client</faultcode></S:Fault>`), class: "permanent", code: "HTTP 500 soap:Client"},

		"wsse:FailedAuthentication":        {status: 500, body: fault11("sec:FailedAuthentication", ""), class: "auth", code: "HTTP 500 wsse:FailedAuthentication"},
		"wsse:InvalidSecurity":             {status: 500, body: fault11("sec:InvalidSecurity", ""), class: "auth", code: "HTTP 500 wsse:InvalidSecurity"},
		"wsse:FailedCheck":                 {status: 500, body: fault11("sec:FailedCheck", ""), class: "auth", code: "HTTP 500 wsse:FailedCheck"},
		"wsse:UnsupportedSecurityToken":    {status: 500, body: fault11("sec:UnsupportedSecurityToken", ""), class: "auth", code: "HTTP 500 wsse:UnsupportedSecurityToken"},
		"wsse:InvalidSecurityToken":        {status: 500, body: fault11("sec:InvalidSecurityToken", ""), class: "auth", code: "HTTP 500 wsse:InvalidSecurityToken"},
		"wsse:MessageExpired":              {status: 500, body: fault11("sec:MessageExpired", ""), class: "auth", code: "HTTP 500 wsse:MessageExpired"},
		"wsu:MessageExpired":               {status: 500, body: fault11("u:MessageExpired", ""), class: "auth", code: "HTTP 500 wsu:MessageExpired"},
		"wsse, prefix not declared":        {status: 500, body: fault11("wsse:FailedAuthentication", ""), class: "auth", code: "HTTP 500 FailedAuthentication"},
		"wsse of WSS 1.1 as a subcode":     {status: 400, body: strings.Replace(fault12("S:Sender", "sec:FailedAuthentication"), "secext-1.0", "secext-1.1", 1), class: "auth", code: "HTTP 400 soap:Sender"},
		"wsse as a second subcode":         {status: 400, body: fault12("S:Sender", "c:Refused", "sec:FailedCheck"), class: "auth", code: "HTTP 400 soap:Sender"},
		"FailedAuthentication of another":  {status: 500, body: fault11("c:FailedAuthentication", ""), class: "transient", code: "HTTP 500 cal:FailedAuthentication"},
		"wsse with 403 and 429 stays auth": {status: 429, body: fault11("sec:FailedAuthentication", ""), class: "auth", code: "HTTP 429 wsse:FailedAuthentication"},

		"Server with 429":                  {status: 429, body: fault11("S:Server", ""), class: "throttled", code: "HTTP 429 soap:Server"},
		"Client with 429":                  {status: 429, body: fault11("S:Client", ""), class: "throttled", code: "HTTP 429 soap:Client"},
		"Server with 503":                  {status: 503, body: fault11("S:Server", ""), class: "transient", code: "HTTP 503 soap:Server"},
		"Server with 503 and Retry-After":  {status: 503, retry: "30", body: fault11("S:Server", ""), class: "throttled", code: "HTTP 503 soap:Server"},
		"unknown with 503 and Retry-After": {status: 503, retry: "30", body: fault11("c:Busy", ""), class: "throttled", code: "HTTP 503 cal:Busy"},
		"Client with 503 and Retry-After":  {status: 503, retry: "30", body: fault11("S:Client", ""), class: "permanent", code: "HTTP 503 soap:Client"},
		"Client with 401":                  {status: 401, body: fault11("S:Client", ""), class: "auth", code: "HTTP 401 soap:Client"},
		"Client with 403":                  {status: 403, body: fault11("S:Client", ""), class: "forbidden", code: "HTTP 403 soap:Client"},
		"Client with 404":                  {status: 404, body: fault11("S:Client", ""), class: "permanent", code: "HTTP 404 soap:Client"},

		"rule on the detail, 1.1":           {status: 500, body: fault11("S:Client", retryable), rules: answers, class: "transient", code: "HTTP 500 soap:Client"},
		"rule on the detail, 1.2":           {status: 400, body: fault12("S:Sender"), rules: answers, class: "transient", code: "HTTP 400 soap:Sender"},
		"rule on the detail, other code":    {status: 500, body: fault11("S:Server", retryable), rules: answers, class: "transient", code: "HTTP 500 soap:Server"},
		"rule on the detail, other value":   {status: 500, body: fault11("S:Client", strings.Replace(retryable, "true", "false", 1)), rules: answers, class: "permanent", code: "HTTP 500 soap:Client"},
		"rule on the detail, other space":   {status: 500, body: fault11("S:Client", strings.Replace(retryable, calendar, "urn:other", 1)), rules: answers, class: "permanent", code: "HTTP 500 soap:Client"},
		"rule that makes a fault a success": {status: 500, body: fault11("S:Server", strings.Replace(retryable, "7", "409", 1)), rules: answers, class: "duplicate", code: "HTTP 500 soap:Server"},
		"rule on a subcode":                 {status: 400, body: fault12("S:Sender", "c:Room", "c:Busy"), rules: []Answer{{Subcode: "cal:Busy", Class: "throttled"}}, class: "throttled", code: "HTTP 400 soap:Sender"},
		"rule on a subcode, any space":      {status: 400, body: fault12("S:Sender", "c:Busy"), rules: []Answer{{Subcode: "Busy", Class: "throttled"}}, class: "throttled", code: "HTTP 400 soap:Sender"},
		"rule on a subcode, no subcode":     {status: 400, body: fault12("S:Sender"), rules: []Answer{{Subcode: "Sender", Class: "throttled"}}, class: "permanent", code: "HTTP 400 soap:Sender"},
		"rule on a code":                    {status: 500, body: fault11("c:Gone", ""), rules: answers, class: "permanent", code: "HTTP 500 cal:Gone"},
		"rule on a code, same local name":   {status: 500, body: fault11("S:Gone", ""), rules: answers, class: "transient", code: "HTTP 500 soap:Gone"},
		"rule on a dotted code":             {status: 500, body: fault11("S:Server.Database.Lock", ""), rules: answers, class: "conflict", code: "HTTP 500 soap:Server.Database.Lock"},
		"rule on a dotted code, less":       {status: 500, body: fault11("S:Server.Databases", ""), rules: answers, class: "transient", code: "HTTP 500 soap:Server.Databases"},
		"rule before wsse":                  {status: 500, body: fault11("sec:FailedCheck", ""), rules: []Answer{{Code: "wsse:FailedCheck", Class: "permanent"}}, class: "permanent", code: "HTTP 500 wsse:FailedCheck"},
		"first rule wins":                   {status: 500, body: fault11("S:Server", ""), rules: []Answer{{Code: "Receiver", Class: "auth"}, {Code: "Server", Class: "permanent"}}, class: "auth", code: "HTTP 500 soap:Server"},

		"a result":                            {status: 200, body: enveloped(Version11, stored), rules: answers, class: "delivered"},
		"a result in 1.2":                     {status: 200, body: enveloped(Version12, stored), rules: answers, class: "delivered"},
		"a result, 202":                       {status: 202, body: enveloped(Version11, stored), class: "accepted"},
		"an empty body":                       {status: 200, body: enveloped(Version11, ""), class: "delivered"},
		"a duplicate":                         {status: 200, body: enveloped(Version11, duplicate), rules: answers, class: "duplicate"},
		"an error in the body":                {status: 200, body: enveloped(Version11, `<c:NotifyHearingResponse><x:error xmlns:x="urn:x"/></c:NotifyHearingResponse>`), rules: answers, class: "permanent"},
		"a result with 500":                   {status: 500, body: enveloped(Version11, stored), class: "transient"},
		"a result with 500, outcomes say 200": {status: 500, body: enveloped(Version11, stored), outcome: map[int]string{500: "delivered"}, class: "transient"},
		"a fault without a namespace":         {status: 200, body: enveloped(Version11, `<Fault><faultcode>Client</faultcode></Fault>`), class: "permanent", code: "HTTP 200 Client"},
		"Fault elsewhere":                     {status: 200, body: enveloped(Version11, `<c:NotifyHearingResponse><c:Fault><faultcode>S:Client</faultcode></c:Fault></c:NotifyHearingResponse>`), class: "delivered"},

		"503 with text":                  {status: 503, body: busyText, class: "transient"},
		"503 with text and Retry-After":  {status: 503, retry: "30", body: busyText, class: "throttled"},
		"404 with text":                  {status: 404, body: "not here", class: "unexplained"},
		"404 with a page":                {status: 404, body: "<html><body>not here</body></html>", class: "unexplained"},
		"404 with JSON":                  {status: 404, body: `{"message":"not here"}`, class: "permanent"},
		"404 with text, outcomes":        {status: 404, body: "not here", outcome: map[int]string{404: "permanent"}, class: "permanent"},
		"a message without a fault, 404": {status: 404, body: enveloped(Version11, ""), class: "permanent"},
		"302 without anything":           {status: 302, class: "unexplained"},
		"401 without anything":           {status: 401, class: "auth"},
		"200 with a page":                {status: 200, body: "<html><body>Log in</body></html>", class: "unexplained"},
		"200 without anything":           {status: 200, class: "unknown"},
		"204":                            {status: 204, class: "unknown"},
		"204, outcomes say delivered":    {status: 204, outcome: map[int]string{204: "delivered"}, class: "delivered"},
		"202 without anything":           {status: 202, class: "accepted"},
		"202 with a page":                {status: 202, body: "<p>thanks</p>", class: "unknown"},
		"502, outcomes say auth":         {status: 502, body: "bad gateway", outcome: map[int]string{502: "auth"}, class: "auth"},
		"502 with a fault, outcomes too": {status: 502, body: fault11("S:Client", ""), outcome: map[int]string{502: "auth"}, class: "permanent", code: "HTTP 502 soap:Client"},
		"another envelope":               {status: 200, body: `<Envelope xmlns="urn:x"><Body/></Envelope>`, class: "unknown"},
		"an envelope without a body":     {status: 200, body: `<Envelope xmlns="` + soap11 + `"/>`, class: "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) { c.Answers, c.Outcomes = tc.rules, tc.outcome }))
			ans := exchange.Answer{Status: tc.status, Header: http.Header{}, Body: []byte(tc.body)}
			if tc.retry != "" {
				ans.Header.Set("Retry-After", tc.retry)
			}
			receipt, err := a.judge(exchange.Request{Method: "POST", Target: "clinic"}, ans, hearing(`{}`))
			class := adapters.ClassOf(err)
			switch {
			case receipt.Duplicate:
				class = adapters.ClassDuplicate
			case receipt.Accepted:
				class = adapters.ClassAccepted
			}
			if class != tc.class {
				t.Errorf("class %s, want %s: %v", class, tc.class, err)
			}
			if tc.code == "" {
				tc.code = ans.Code()
			}
			if receipt.Code != tc.code {
				t.Errorf("code %q, want %q", receipt.Code, tc.code)
			}
		})
	}
}

// Reasons name code, subcodes and text, and nothing of the detail.
func TestReasonsOfFaults(t *testing.T) {
	secret := hearing(`{"who":"Jane Doe","seal":"A<B&C","firm":"Smith&Jones"}`)
	for name, tc := range map[string]struct{ body, want string }{
		"1.1":       {fault11("S:Client", retryable), "POST clinic: answered HTTP 500: soap:Client: because"},
		"1.2":       {fault12("S:Sender", "c:Room", "x:Full"), "POST clinic: answered HTTP 500: soap:Sender (cal:Room) (Full): because"},
		"no text":   {enveloped(Version12, `<S:Fault><S:Code><S:Value>S:Sender</S:Value></S:Code><S:Reason/></S:Fault>`), "POST clinic: answered HTTP 500: soap:Sender"},
		"no code":   {enveloped(Version11, `<S:Fault><faultstring>because</faultstring></S:Fault>`), "POST clinic: answered HTTP 500: a fault without a code: because"},
		"a value":   {strings.Replace(fault11("S:Client", ""), "because", "no room for Jane Doe", 1), "POST clinic: answered HTTP 500: soap:Client: (hidden, because it repeats what was sent)"},
		"as sent":   {strings.Replace(fault11("S:Client", ""), "because", "bad &lt;x>A&amp;lt;B&amp;amp;C&lt;/x>", 1), "POST clinic: answered HTTP 500: soap:Client: (hidden, because it repeats what was sent)"},
		"as such":   {strings.Replace(fault11("S:Client", ""), "because", "bad A&lt;B&amp;C", 1), "POST clinic: answered HTTP 500: soap:Client: (hidden, because it repeats what was sent)"},
		"the code":  {fault11("Jane Doe", ""), "POST clinic: answered HTTP 500: (hidden, because it repeats what was sent): because"},
		"the clock": {fault11("u:MessageExpired", ""), "POST clinic: answered HTTP 500: wsu:MessageExpired: because (compare the clocks of both sides)"},
		"long":      {strings.Replace(fault11("S:Client", ""), "because", strings.Repeat("long ", 999), 1), "POST clinic: answered HTTP 500: soap:Client: " + strings.Repeat("long ", 59) + "lo…"},
		"an entity": {"<html>no room for Smith&Jones</html>", "POST clinic: answered HTTP 500: no SOAP message: line 1, column 30: invalid character entity"},
		"a page":    {"<html><p>Jane Doe</b></html>", "POST clinic: answered HTTP 500: no SOAP message: line 1, column 18: </b> closes <p>, which was opened in line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings())
			req := exchange.Request{Method: "POST", Target: "clinic", Payload: secret.Body}
			receipt, err := a.judge(req, exchange.Answer{Status: 500, Header: http.Header{}, Body: []byte(tc.body)}, secret)
			if err == nil || err.Error() != tc.want {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
			if strings.Contains(receipt.Code, "Jane") {
				t.Errorf("the code %q shows a value", receipt.Code)
			}
		})
	}
}

// Redaction does not recognise half of a value, so a text that was cut is not shown.
func TestReasonsThatWereCutOff(t *testing.T) {
	for name, answer := range map[string]string{
		"1.1": strings.Replace(fault11("S:Client", ""), "because", "no room for Jane Doe", 1),
		"1.2": strings.Replace(fault12("S:Sender"), "because", "no room for Jane Doe", 1),
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings())
			msg := hearing(`{"who":"Jane Doe"}`)
			req := exchange.Request{Method: "POST", Target: "clinic", Payload: msg.Body}
			ans := exchange.Answer{Status: 500, Header: http.Header{}, Body: []byte(answer[:strings.Index(answer, "oe</")]), Partial: true, Cut: errors.New("closed")}
			receipt, err := a.judge(req, ans, msg)
			if err == nil || strings.Contains(err.Error(), "Jane") || !strings.HasPrefix(receipt.Code, "HTTP 500 soap:") {
				t.Errorf("got %q, %v", receipt.Code, err)
			}
		})
	}
}
