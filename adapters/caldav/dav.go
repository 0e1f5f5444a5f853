package caldav

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// statuses are the classes of WebDAV and CalDAV that differ from those of other adapters: a
// collection that is missing (RFC 4918, 9.7.1), a lock (11.3), and a server that is full
// (11.5).
var statuses = map[int]adapters.Class{
	http.StatusConflict:            adapters.ClassPermanent,
	http.StatusLocked:              adapters.ClassTransient,
	http.StatusInsufficientStorage: adapters.ClassTransient,
}

func parseRules(outcomes map[int]string) (exchange.Rules, error) {
	return exchange.ParseRules(exchange.RuleOptions{Protocol: statuses, Outcomes: outcomes})
}

const (
	davNS    = "DAV:"
	caldavNS = "urn:ietf:params:xml:ns:caldav"
)

// multistatus is the body of a 207 (RFC 4918, 13).
type multistatus struct {
	XMLName   xml.Name   `xml:"DAV: multistatus"`
	Responses []response `xml:"DAV: response"`
}

type response struct {
	Href   string   `xml:"DAV: href"`
	Status string   `xml:"DAV: status"`
	Error  davError `xml:"DAV: error"`
	Props  []struct {
		Status string `xml:"DAV: status"`
		ETag   string `xml:"DAV: prop>getetag"`
		Data   []byte `xml:"urn:ietf:params:xml:ns:caldav prop>calendar-data"`
	} `xml:"DAV: propstat"`
}

// davError names preconditions that did not hold (RFC 4918, 16).
type davError struct {
	XMLName    xml.Name
	Conditions []struct {
		XMLName xml.Name
	} `xml:",any"`
}

// precondition is the first one, such as no-uid-conflict.
func (e davError) precondition() string {
	for _, c := range e.Conditions {
		if c.XMLName.Space == davNS || c.XMLName.Space == caldavNS {
			return c.XMLName.Local
		}
	}
	return ""
}

// statusOf reads a status line in XML, such as HTTP/1.1 412 Precondition Failed.
func statusOf(line string) int {
	parts := strings.Fields(line)
	if len(parts) < 2 {
		return 0
	}
	status, _ := strconv.Atoi(parts[1])
	return status
}

// judge returns nil for a success, and otherwise the error for an answer.
func (a *Adapter) judge(req exchange.Request, ans exchange.Answer) error {
	status, because := ans.Status, ""
	if status == http.StatusMultiStatus {
		var m multistatus
		if err := xml.Unmarshal(ans.Body, &m); err != nil || len(m.Responses) == 0 {
			return adapters.Unclear(fmt.Errorf("%s %s: answered %s, but its body is not a multistatus of WebDAV", req.Method, req.Target, ans.Code()))
		}
		status = http.StatusOK
		for _, r := range m.Responses {
			if inner := statusOf(r.Status); inner >= http.StatusMultipleChoices {
				status, because = inner, r.Error.precondition()
				break
			}
		}
		if status == http.StatusOK {
			return nil
		}
		ans.Status, ans.Body = status, nil
		because = "in a 207: " + because
	} else if status >= http.StatusBadRequest {
		var e davError
		if xml.Unmarshal(ans.Body, &e) == nil && e.XMLName.Space == davNS && e.XMLName.Local == "error" {
			because = e.precondition()
		}
	}
	condition := strings.TrimPrefix(because, "in a 207: ")
	fail := func(class func(error) error, text string) error {
		return class(fmt.Errorf("%s %s: answered HTTP %d: %s", req.Method, req.Target, status, text))
	}
	_, configured := a.outcomes[status]
	switch {
	case configured:
	case condition == "no-uid-conflict":
		return fail(adapters.Conflict, "another object of the collection has this UID (no-uid-conflict)")
	case status == http.StatusPreconditionFailed:
		return fail(adapters.Conflict, "the object is not as it was written last")
	case condition == "need-privileges" || condition == "": // RFC 3744, 7.1.1: as any 403
	case status == http.StatusForbidden || status == http.StatusConflict || status == http.StatusUnsupportedMediaType || status == http.StatusBadRequest || status == http.StatusPreconditionFailed:
		return fail(adapters.Permanent, "the server does not take the object ("+condition+")")
	}
	if status == http.StatusConflict && !configured {
		return fail(adapters.Permanent, "the collection does not exist")
	}
	_, err := a.rules.Judge(req, ans)
	return err
}

// object is an object of a collection.
type object struct {
	stored
	code   string
	exists bool
	path   string
	etag   string
}

// get reads an object.
func (a *Adapter) get(ctx context.Context, msg adapters.Message, path string) (got object, err error) {
	req, err := a.request(http.MethodGet, path, msg, http.Header{}, nil)
	if err != nil {
		return got, err
	}
	req.Header.Del("Idempotency-Key")
	receipt, err := a.endpoint.Deliver(ctx, a.url, req, func(ans exchange.Answer) (adapters.Receipt, error) {
		receipt := adapters.Receipt{Code: ans.Code()}
		switch {
		case (ans.Status == http.StatusNotFound || ans.Status == http.StatusGone) && !ans.IsPage() && ans.Cut == nil:
			return receipt, nil
		case !ans.OK():
			return receipt, a.judge(req, ans)
		case ans.Cut != nil:
			return receipt, fmt.Errorf("%s %s: answered %s, but its body ended early", req.Method, req.Target, ans.Code())
		case ans.IsPage():
			return receipt, fmt.Errorf("%s %s: answered %s, but its body is an HTML page", req.Method, req.Target, ans.Code())
		}
		got.exists, got.path, got.etag = true, path, ans.Header.Get("ETag")
		if got.stored, err = parse(ans.Body); err != nil || ans.Partial {
			return receipt, adapters.Permanent(fmt.Errorf("%s %s: the object %w", req.Method, req.Target, orLong(err)))
		}
		return receipt, nil
	})
	got.code = receipt.Code
	return got, err
}

func orLong(err error) error {
	if err == nil {
		return fmt.Errorf("is longer than %d KiB", exchange.MaxAnswer>>10)
	}
	return err
}

// find reads the object with a UID, wherever it is in the collection of the message (RFC
// 4791, 7.8.6).
func (a *Adapter) find(ctx context.Context, msg adapters.Message, uid string) (got object, err error) {
	var text bytes.Buffer
	_ = xml.EscapeText(&text, []byte(uid))
	req, err := a.query(msg, `<C:prop-filter name="UID"><C:text-match collation="i;octet">`+text.String()+`</C:text-match></C:prop-filter>`)
	if err != nil {
		return got, err
	}
	m, code, err := a.ask(ctx, req)
	got.code = code
	for _, r := range m.Responses {
		path, data, etag := r.object()
		if s, wrong := parse(data); path != "" && (wrong == nil || s.uid != "") && s.uid == uid { // text-match looks for a part
			got.exists, got.path, got.etag, got.stored = true, path, etag, s
			return got, err
		}
	}
	return got, err
}

// query is a calendar-query (RFC 4791, 7.8) with a filter of VEVENTs.
func (a *Adapter) query(msg adapters.Message, filter string) (exchange.Request, error) {
	body := `<?xml version="1.0" encoding="utf-8"?>
<C:calendar-query xmlns:D="DAV:" xmlns:C="urn:ietf:params:xml:ns:caldav"><D:prop><D:getetag/><C:calendar-data/></D:prop>` +
		`<C:filter><C:comp-filter name="VCALENDAR"><C:comp-filter name="VEVENT">` + filter + `</C:comp-filter></C:comp-filter></C:filter></C:calendar-query>`
	h := http.Header{"Depth": {"1"}, "Content-Type": {"application/xml; charset=utf-8"}}
	req, err := a.endpoint.Request("REPORT", a.url, newValues(msg), h, []byte(body))
	if err == nil {
		req.Header.Del("Idempotency-Key")
		req.Header["Depth"], req.Header["Content-Type"] = []string{"1"}, []string{"application/xml; charset=utf-8"}
	}
	return req, err
}

// ask sends a query. errTooLong says that the answer does not fit.
func (a *Adapter) ask(ctx context.Context, req exchange.Request) (m multistatus, code string, err error) {
	receipt, err := a.endpoint.Deliver(ctx, a.url, req, func(ans exchange.Answer) (adapters.Receipt, error) {
		receipt := adapters.Receipt{Code: ans.Code()}
		switch {
		case ans.Status == http.StatusInsufficientStorage && bytes.Contains(ans.Body, []byte("number-of-matches-within-limits")):
			return receipt, errTooLong // RFC 4791, 7.8
		case ans.Status != http.StatusMultiStatus:
			err := a.judge(req, ans)
			if err == nil {
				err = adapters.Permanent(fmt.Errorf("%s %s: answered %s, which is no answer of CalDAV: check that url is a calendar", req.Method, req.Target, ans.Code()))
			}
			return receipt, err
		case ans.Cut != nil:
			return receipt, fmt.Errorf("%s %s: answered %s, but its body ended early", req.Method, req.Target, ans.Code())
		case ans.Partial:
			return receipt, errTooLong
		}
		if err := xml.Unmarshal(ans.Body, &m); err != nil {
			return receipt, adapters.Permanent(fmt.Errorf("%s %s: answered %s, but its body is not a multistatus of WebDAV", req.Method, req.Target, ans.Code()))
		}
		return receipt, nil
	})
	return m, receipt.Code, err
}

// object returns the path, the data and the ETag of a response. The path is empty if it has
// none.
func (r response) object() (path string, data []byte, etag string) {
	for _, p := range r.Props {
		if statusOf(p.Status) == http.StatusOK && len(p.Data) > 0 {
			data, etag = p.Data, p.ETag
		}
	}
	u, err := url.Parse(strings.TrimSpace(r.Href))
	if err != nil || len(data) == 0 || !strings.HasPrefix(u.Path, "/") {
		return "", nil, ""
	}
	if !adapters.ValidETag(etag) {
		etag = ""
	}
	return u.EscapedPath(), data, etag
}
