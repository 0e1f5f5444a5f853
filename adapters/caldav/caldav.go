package caldav

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// Adapter keeps events in calendars of one server. It is safe for concurrent use.
//
// The external id of a key is the path of its object. The learnt value remove has the paths
// of objects in other collections that are to be removed.
type Adapter struct {
	endpoint    *endpoint.Endpoint
	url         *endpoint.URL
	collections []*endpoint.URL // that List reads
	domain      string
	zone        *time.Location // nil: UTC
	length      time.Duration
	cancelled   []string
	deletes     bool // a cancellation removes the object
	rules       exchange.Rules
	outcomes    map[int]string
}

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Reader    = (*Adapter)(nil)
	_ adapters.Lister    = (*Adapter)(nil)
	_ adapters.Previewer = (*Adapter)(nil)
	_ adapters.FieldUser = (*Adapter)(nil)
	_ adapters.Learner   = (*Adapter)(nil)
	_ adapters.Connector = (*Adapter)(nil)
	_ adapters.Shaper    = (*Adapter)(nil)
)

// AttemptTimeout is the longest time that Deliver can take: it may read the object before it
// writes it.
func (a *Adapter) AttemptTimeout() time.Duration { return 2 * a.endpoint.AttemptTimeout() }

// Hosts implements [adapters.Connector].
func (a *Adapter) Hosts() []adapters.Host { return a.endpoint.Hosts() }

// CertificateExpires implements [adapters.Connector].
func (a *Adapter) CertificateExpires() time.Time { return a.endpoint.CertificateExpires() }

// Close closes idle connections. Deliveries in flight are not disturbed.
func (a *Adapter) Close() error { return a.endpoint.Close() }

// Fields implements [adapters.FieldUser].
func (a *Adapter) Fields() []string {
	return slices.Concat(a.endpoint.Fields(), a.url.Fields(), []string{"start"})
}

// Learned implements [adapters.Learner].
func (a *Adapter) Learned() []string { return []string{remove} }

// Shape implements [adapters.Shaper].
func (a *Adapter) Shape(adapters.Message) string {
	zone := ""
	if a.zone != nil {
		zone = a.zone.String()
	}
	return route.Shape(a.domain, zone, a.length.String())
}

// cancels reports whether a message cancels by its type.
func (a *Adapter) cancels(msg adapters.Message) bool {
	return slices.ContainsFunc(a.cancelled, func(pattern string) bool { return adapters.MatchType(pattern, msg.Type) })
}

// remove is the learnt value with the objects that are to be removed.
const remove = "remove"

// plan is the request that changes something, and what is known after it has succeeded.
type plan struct {
	method string
	path   string // of the object
	known  bool   // the object was written before, and it has the ETag etag if that is strong
	etag   string
	event  event
	body   []byte // of a PUT
	after  adapters.Ref
	more   bool
}

// plan says what the message needs next. A hearing that has moved to another collection is
// put there first, and removed from the old one in the next step. So at no moment it is in
// none of them.
func (a *Adapter) plan(msg adapters.Message) (p plan, err error) {
	refuse := func(err error) error {
		return adapters.Redacted(adapters.Permanent(fmt.Errorf("%s: nothing was sent: %w", a.url.Target(), err)))
	}
	was := msg.Ref
	old := strings.Fields(was.Learned[remove])
	if msg.Step > 0 {
		if len(old) == 0 {
			return plan{after: was}, nil
		}
		p = plan{method: http.MethodDelete, path: old[0], more: len(old) > 1}
		p.after = adapters.Ref{ExternalID: was.ExternalID, ETag: was.ETag, Version: msg.Version, Learned: learned(old[1:])}
		return p, nil
	}
	if p.event, err = a.eventOf(msg); err != nil {
		return p, refuse(err)
	}
	base, err := a.endpoint.Request(http.MethodPut, a.url, &placeholder.Values{Msg: msg}, http.Header{}, nil)
	if err != nil {
		return p, err
	}
	folder := base.URL.EscapedPath()
	p.path = folder + objectName(msg.Key)
	if was.ExternalID != "" && folderOf(was.ExternalID) == folder {
		p.path = was.ExternalID
	}
	if p.event.texts["status"] == "CANCELLED" && a.deletes {
		p.method = http.MethodDelete
		if was.ExternalID != "" {
			p.path = was.ExternalID
		}
		p.known, p.etag = p.path == was.ExternalID, was.ETag
		old = slices.DeleteFunc(old, func(path string) bool { return path == p.path })
		p.after, p.more = adapters.Ref{Version: msg.Version, Learned: learned(old)}, len(old) > 0
		return p, nil
	}
	p.method, p.body = http.MethodPut, a.write(p.event)
	p.known, p.etag = p.path == was.ExternalID, was.ETag
	if was.ExternalID != "" && !p.known {
		old = append(old, was.ExternalID)
	}
	old = slices.DeleteFunc(old, func(path string) bool { return path == p.path })
	p.after, p.more = adapters.Ref{ExternalID: p.path, Version: msg.Version, Learned: learned(old)}, len(old) > 0
	if len(p.path) > adapters.MaxRef || len(p.after.Learned[remove]) > adapters.MaxRef {
		return p, refuse(fmt.Errorf("the path of the object is longer than %d bytes", adapters.MaxRef))
	}
	return p, nil
}

func learned(old []string) map[string]string {
	if len(old) == 0 {
		return nil
	}
	return map[string]string{remove: strings.Join(old, " ")}
}

func folderOf(path string) string { return path[:strings.LastIndexByte(path, '/')+1] }

// strong reports whether an ETag satisfies If-Match (RFC 9110, 13.1.1).
func strong(etag string) bool { return adapters.ValidETag(etag) && !strings.HasPrefix(etag, "W/") }

// Deliver implements [adapters.Adapter]. If the ETag of a known object is not known or weak,
// the object is read first, and is not written over a newer one. An object is removed only as
// it was written or read.
func (a *Adapter) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	p, err := a.plan(msg)
	switch {
	case err != nil:
		return adapters.Receipt{}, err
	case p.method == "": // somebody has set the reference meanwhile, so there is nothing to remove
		return adapters.Receipt{Duplicate: true}, nil
	}
	removes := p.method == http.MethodDelete && msg.Step == 0
	if (p.known || removes) && msg.Step == 0 && (!p.known || !strong(p.etag)) {
		got, err := a.get(ctx, msg, p.path)
		switch {
		case err != nil:
			return adapters.Receipt{Code: got.code}, err
		case !got.exists && removes:
			return adapters.Receipt{Code: got.code, Duplicate: true, More: p.more, Ref: &p.after}, nil
		case got.exists && got.uid != p.event.uid:
			return adapters.Receipt{Code: got.code}, adapters.Conflict(fmt.Errorf("GET %s: the object is of another event", a.url.Target()))
		case !got.exists:
			return adapters.Receipt{Code: got.code}, adapters.Conflict(fmt.Errorf("GET %s: answered %s: the object is gone", a.url.Target(), got.code))
		case got.sequence > p.event.sequence:
			return adapters.Receipt{Code: got.code}, adapters.Conflict(fmt.Errorf("GET %s: the object has the later SEQUENCE %d", a.url.Target(), got.sequence))
		}
		p.known, p.etag = true, got.etag
	}
	h := http.Header{}
	switch {
	case p.known && strong(p.etag):
		h.Set("If-Match", p.etag)
	case p.method == http.MethodPut && !p.known:
		h.Set("If-None-Match", "*")
	}
	req, err := a.request(p.method, p.path, msg, h, p.body)
	if err != nil {
		return adapters.Receipt{}, err
	}
	return a.endpoint.Deliver(ctx, a.url, req, func(ans exchange.Answer) (adapters.Receipt, error) {
		receipt := adapters.Receipt{Code: ans.Code(), More: p.more, Ref: &p.after}
		gone := ans.Status == http.StatusNotFound || ans.Status == http.StatusGone
		if p.method == http.MethodDelete && gone && !ans.IsPage() && ans.Cut == nil {
			receipt.Duplicate = true
			return receipt, nil
		}
		if err := a.judge(req, ans); err != nil {
			return adapters.Receipt{Code: ans.Code()}, err
		}
		if p.method == http.MethodPut {
			if etag := ans.Header.Get("ETag"); adapters.ValidETag(etag) {
				receipt.Ref.ETag = etag
			}
		}
		return receipt, nil
	})
}

// Reads implements [adapters.Reader].
func (a *Adapter) Reads(msg adapters.Message) bool {
	_, err := a.plan(msg)
	return err == nil
}

// Read implements [adapters.Reader]. The object is compared by SEQUENCE and then by its
// fields, because servers write objects anew.
func (a *Adapter) Read(ctx context.Context, msg adapters.Message) (adapters.Reading, error) {
	p, err := a.plan(msg)
	if err != nil {
		return adapters.Reading{}, err
	}
	done := adapters.Reading{Standing: adapters.Equal, Ref: &p.after, More: p.more}
	if p.method == "" {
		return done, nil
	}
	got, err := a.get(ctx, msg, p.path)
	if err == nil && !got.exists && p.method == http.MethodPut {
		code := got.code
		if got, err = a.find(ctx, msg, p.event.uid); err == nil && !got.exists {
			got.code = code
		}
	}
	reading := adapters.Reading{Code: got.code}
	switch {
	case err != nil:
		return reading, err
	case !got.exists && p.method == http.MethodDelete:
		done.Code = got.code
		return done, nil
	case !got.exists:
		reading.Standing = adapters.Absent
		if p.known { // somebody has removed it, so it is created again
			reading.Ref = &adapters.Ref{Learned: msg.Ref.Learned}
		}
		return reading, nil
	case msg.Step > 0:
		reading.Standing = adapters.Older
		return reading, nil
	}
	ref := p.after
	ref.ExternalID, ref.ETag = got.path, got.etag
	if p.method == http.MethodDelete {
		ref.Learned = msg.Ref.Learned
	}
	reading.Ref = &ref
	what := p.event.differs(got.stored)
	changed := msg.Ref.ExternalID == got.path && strong(msg.Ref.ETag) && strong(got.etag) && msg.Ref.ETag != got.etag
	switch {
	case got.uid != p.event.uid:
		reading.Standing, reading.Differs = adapters.Foreign, "the object is of another event"
	case got.repeats:
		reading.Standing, reading.Differs = adapters.Foreign, "it has become a series"
	case got.sequence > p.event.sequence:
		reading.Standing, reading.Differs = adapters.Newer, fmt.Sprintf("its SEQUENCE is %d", got.sequence)
	case p.method == http.MethodDelete:
		reading.Standing = adapters.Older
	case got.sequence == p.event.sequence && what == "":
		reading.Standing, reading.More = adapters.Equal, p.more
	case got.sequence == p.event.sequence:
		reading.Standing, reading.Differs = adapters.Foreign, "it differs in "+what
	case changed:
		reading.Standing, reading.Differs = adapters.Foreign, "it was changed since it was written last"
	default:
		reading.Standing = adapters.Older
	}
	return reading, nil
}

// Preview implements [adapters.Previewer].
func (a *Adapter) Preview(msg adapters.Message) (adapters.Preview, error) {
	p, err := a.plan(msg)
	switch {
	case err != nil:
		return adapters.Preview{Method: http.MethodPut}, err
	case p.method == "":
		return adapters.Preview{Skipped: "there is nothing to remove"}, nil
	}
	h := http.Header{}
	switch {
	case p.known && strong(p.etag):
		h.Set("If-Match", p.etag)
	case p.method == http.MethodPut && !p.known:
		h.Set("If-None-Match", "*")
	}
	req, err := a.request(p.method, p.path, msg, h, p.body)
	if err != nil {
		return adapters.Preview{Method: p.method}, err
	}
	return a.endpoint.Preview(req), nil
}

// request builds a request about an object or a collection, without authorization.
func (a *Adapter) request(method, path string, msg adapters.Message, h http.Header, body []byte) (exchange.Request, error) {
	own := maps.Clone(h)
	req, err := a.endpoint.Request(method, a.url, &placeholder.Values{Msg: msg}, h, body)
	if err != nil {
		return req, err
	}
	maps.Copy(req.Header, own)
	if method == http.MethodPut {
		req.Header.Set("Content-Type", "text/calendar; charset=utf-8")
	}
	return a.at(req, path)
}

// at is a request to another path of the same server.
func (a *Adapter) at(req exchange.Request, path string) (exchange.Request, error) {
	to, err := req.URL.Parse(path)
	if err != nil || to.Host != req.URL.Host || to.Scheme != req.URL.Scheme || !strings.HasPrefix(path, "/") {
		return req, adapters.Redacted(adapters.Permanent(fmt.Errorf(
			"%s %s: nothing was sent: %w", req.Method, req.Target, errors.New("the external id is not the path of an object on this server: set it with lockstep ref set, then requeue"))))
	}
	req.URL = to
	return req, nil
}
