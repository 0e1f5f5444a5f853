package caldav

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// Config describes one calendar, or the calendars of several rooms on one server.
type Config struct {
	// URL is the collection, with a slash at its end. Its path may have placeholders such
	// as {fields.room}: then each room has a calendar of its own, and a hearing that moves
	// to another room leaves the calendar of the one before. Required.
	URL string `yaml:"url" required:"adapter" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"The calendar collection, with a slash at its end. It may have placeholders such as {fields.room}, for a calendar for each room."`

	// Domain is a name that belongs to you. It makes the UID of each event unique in the
	// world, as in H-2027-000001@agency.example.gov. It must never change. Required.
	Domain string `yaml:"domain" required:"adapter" pattern:"." doc:"A host name of yours, which makes the UIDs unique: KEY@domain. It must never change."`

	// Zone is an IANA name. Times are written as local times of this zone, with its rules,
	// and start and end may be without an offset. Default: times are written in UTC.
	Zone string `yaml:"zone" doc:"IANA name of the zone in which times are written. Default: UTC."`

	// Length is how long an event takes whose fields do not say it. Default: it has no end.
	Length time.Duration `yaml:"length" doc:"How long an event takes that has neither end nor minutes. Default: it has no end."`

	// Cancelled are the event types, or patterns, that cancel. Default: "*:cancelled". A
	// mapped field status with the value CANCELLED cancels too.
	Cancelled []string `yaml:"cancelled" doc:"Event types that cancel, or patterns. Default: \"*:cancelled\"."`

	// OnCancel says what a cancellation does: keep leaves the entry, with STATUS:CANCELLED,
	// and delete removes it. Default: keep.
	OnCancel string `yaml:"on_cancel" oneof:"keep|delete" doc:"keep: a cancelled entry stays, with STATUS:CANCELLED. delete: it is removed. Default: keep."`

	// Collections are all calendars that lockstep reconcile reads, if URL has a
	// placeholder. They must be on the server of URL. Default: URL.
	Collections []string `yaml:"collections" doc:"All calendars that lockstep reconcile reads, if url has a placeholder. Default: url."`

	// Auth says how requests are authorized. Default: no authorization.
	Auth adapters.Credentials `yaml:"auth" doc:"How requests are authorized. Default: none."`

	// Headers are sent with every request. They are never printed.
	Headers map[string]adapters.Secret `yaml:"headers" keys:"header" doc:"Headers of every request. They are never printed."`

	// TLS says which certificates to trust and which client certificate to show.
	TLS adapters.TLS `yaml:"tls" doc:"Certificates to trust, and the client certificate."`

	// Proxy is the URL of the proxy for all requests, or none. Default: the proxy of the
	// environment.
	Proxy adapters.Secret `yaml:"proxy" doc:"URL of the proxy, or none. Default: the proxy of the environment."`

	// Timeout bounds a request, from the name lookup to the end of the answer. It is
	// from 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout" doc:"Longest time of a request, to the end of the answer: 10ms to 10m. Default: 15s."`

	// Outcomes gives statuses another class than the table of CalDAV has.
	Outcomes map[int]string `yaml:"outcomes" keys:"status" oneof:"delivered|duplicate|accepted|transient|throttled|auth|forbidden|permanent|conflict|unknown" doc:"Class by status, instead of that of the default table."`
}

// New returns an adapter for c. Its error reports everything that is wrong with c, each line
// with the field's name, and no secret.
func New(c Config) (*Adapter, error) {
	a := &Adapter{domain: c.Domain, length: c.Length, cancelled: c.Cancelled, deletes: c.OnCancel == "delete"}
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if a.cancelled == nil {
		a.cancelled = []string{"*:cancelled"}
	}
	if slices.Contains(a.cancelled, "") {
		wrong("cancelled: name an event type, or a pattern such as \"*:cancelled\"")
	}
	if !slices.Contains([]string{"", "keep", "delete"}, c.OnCancel) {
		wrong("on_cancel: %q is not keep or delete", c.OnCancel)
	}
	switch {
	case c.Domain == "":
		wrong("domain: is required: a host name of yours, such as agency.example.gov")
	case strings.ContainsFunc(c.Domain, func(r rune) bool { return !isUnreserved(r) }) || len(c.Domain) > maxDomain:
		wrong("domain: %q is not a host name", c.Domain)
	}
	if c.Length < 0 || c.Length%time.Second != 0 {
		wrong("length: %s is not a number of seconds, minutes or hours", c.Length)
	}
	var err error
	if c.Zone != "" {
		if a.zone, err = time.LoadLocation(c.Zone); err != nil || c.Zone == "Local" {
			wrong("zone: %q is not an IANA time zone, such as America/New_York", c.Zone)
		}
	}
	if a.url, err = collection(c.URL, placeholder.Names{}); err != nil {
		wrong("url: %w", err)
	} else if a.url.FromData() {
		wrong("url: has a placeholder in its host: all calendars of a sync are on one server")
	}
	for i, text := range c.Collections {
		u, err := collection(text, placeholder.Names{})
		switch {
		case err != nil:
			wrong("collections[%d]: %w", i, err)
		case strings.Contains(text, "{"):
			wrong("collections[%d]: has a placeholder: name each calendar", i)
		case hostOf(text) != hostOf(c.URL):
			wrong("collections[%d]: is on another server than url", i)
		}
		a.collections = append(a.collections, u)
	}
	if len(a.collections) == 0 && !strings.Contains(c.URL, "{") {
		a.collections = []*endpoint.URL{a.url}
	}
	a.outcomes = c.Outcomes
	a.rules, err = parseRules(c.Outcomes)
	errs = append(errs, err)
	a.endpoint, err = endpoint.New(endpoint.Options{
		Headers: c.Headers, Auth: c.Auth, TLS: c.TLS, Proxy: c.Proxy, Timeout: c.Timeout,
		URLs: append([]*endpoint.URL{a.url}, a.collections...),
		Reserved: map[string]string{
			"If-Match": "is sent by Lockstep itself", "If-None-Match": "is sent by Lockstep itself", "Depth": "is sent by Lockstep itself", http.CanonicalHeaderKey("Content-Type"): "is sent by Lockstep itself",
		},
	})
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return a, nil
}

// maxDomain is the longest name of a host (RFC 1035, 2.3.4).
const maxDomain = 253

// collection reads the URL of a collection.
func collection(text string, _ placeholder.Names) (*endpoint.URL, error) {
	if text == "" {
		return nil, errors.New("is required")
	}
	u, err := endpoint.ParseURL(text)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(text, "/") || strings.Contains(text, "?") {
		return nil, errors.New("is not a collection: end it with a slash, without a query")
	}
	return u, nil
}

func hostOf(text string) string {
	_, rest, _ := strings.Cut(text, "://")
	host, _, _ := strings.Cut(rest, "/")
	return strings.ToLower(cmp.Or(host, text))
}
