package exchange

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// statuses are the classes of single statuses that differ from the class of their
// hundred. Sources: RFC 9110 (status codes), RFC 6585 (429), RFC 8470 (425), RFC 4918
// (207, 423); 495 and 496 are nginx's for the client certificate.
var statuses = map[int]adapters.Class{
	202: adapters.ClassAccepted,
	207: adapters.ClassUnknown, // the result is in the body
	401: adapters.ClassAuth,
	403: adapters.ClassForbidden,
	407: adapters.ClassAuth,
	408: adapters.ClassTransient,
	409: adapters.ClassConflict,
	412: adapters.ClassConflict,
	423: adapters.ClassTransient,
	425: adapters.ClassTransient,
	429: adapters.ClassThrottled,
	495: adapters.ClassAuth,
	496: adapters.ClassAuth,
	501: adapters.ClassPermanent,
	505: adapters.ClassPermanent,
}

// hundreds are the classes of all other statuses.
var hundreds = map[int]adapters.Class{
	1: adapters.ClassPermanent, // an upgrade that nobody asked for
	2: adapters.ClassDelivered,
	3: adapters.ClassPermanent, // a redirect is not followed
	4: adapters.ClassPermanent,
	5: adapters.ClassTransient,
}

// classes are the names that an outcome can have in a configuration.
var classes = []adapters.Class{
	adapters.ClassDelivered, adapters.ClassDuplicate, adapters.ClassAccepted, adapters.ClassTransient,
	adapters.ClassThrottled, adapters.ClassAuth, adapters.ClassForbidden, adapters.ClassPermanent,
	adapters.ClassConflict, adapters.ClassUnknown,
}

// Outcomes gives statuses their classes: the default table with the exceptions of a
// protocol and of a configuration. The zero value is the default table.
type Outcomes struct {
	overrides map[int]adapters.Class
}

// ParseOutcomes reads the exceptions of a configuration, which override those of the
// protocol. Its error names every wrong entry.
func ParseOutcomes(protocol map[int]adapters.Class, config map[int]string) (Outcomes, error) {
	o := Outcomes{overrides: make(map[int]adapters.Class, len(protocol)+len(config))}
	maps.Copy(o.overrides, protocol)
	var errs []error
	for _, status := range slices.Sorted(maps.Keys(config)) {
		class := adapters.Class(config[status])
		if status < 200 || status > 599 {
			errs = append(errs, fmt.Errorf("outcomes.%d: is not a status from 200 to 599", status))
		}
		if err := CheckClass(class); err != nil {
			errs = append(errs, fmt.Errorf("outcomes.%d: %w", status, err))
		}
		o.overrides[status] = class
	}
	return o, errors.Join(errs...)
}

// CheckClass refuses a class that a configuration cannot name.
func CheckClass(class adapters.Class) error {
	if slices.Contains(classes, class) {
		return nil
	}
	known := strings.Trim(strings.ReplaceAll(fmt.Sprint(classes), " ", ", "), "[]")
	if class == "" {
		return fmt.Errorf("is required: write one of %s", known)
	}
	return fmt.Errorf("%q is not a class; use one of %s", class, known)
}

// selfExplained are the statuses that blame the message without a reason: no gateway
// uses them for a receiver that is down.
var selfExplained = []int{
	http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusUnsupportedMediaType,
	http.StatusUnprocessableEntity, http.StatusRequestHeaderFieldsTooLarge,
}

// Class returns the class of a. The class permanent becomes unexplained if the answer
// gives no reason in a form of an API. Such an answer may come from a gateway in front
// of the receiver. See [Answer.Explained].
func (o Outcomes) Class(a Answer) adapters.Class {
	class := o.ClassOfStatus(a)
	if _, ok := o.overrides[a.Status]; ok || class != adapters.ClassPermanent || slices.Contains(selfExplained, a.Status) || a.Explained() {
		return class
	}
	return adapters.ClassUnexplained
}

// ClassOfStatus returns the class of a if its body is known to be the receiver's.
func (o Outcomes) ClassOfStatus(a Answer) adapters.Class {
	if class, ok := o.overrides[a.Status]; ok {
		return class
	}
	return byStatus(a)
}

// byStatus is the default table.
func byStatus(a Answer) adapters.Class {
	switch {
	case a.Status == http.StatusServiceUnavailable:
		if _, ok := RetryAfter(a.Header, time.Now); ok {
			return adapters.ClassThrottled
		}
	case a.Status == http.StatusBadRequest && aboutCertificate(a.Body):
		return adapters.ClassAuth
	}
	if class, ok := statuses[a.Status]; ok {
		return class
	}
	if class, ok := hundreds[a.Status/100]; ok {
		return class
	}
	return adapters.ClassTransient
}

// aboutCertificate recognises the page with which nginx refuses a client without a
// valid certificate. Its status is 400, as for a bad message.
func aboutCertificate(body []byte) bool {
	return bytes.Contains(body, []byte("No required SSL certificate was sent")) ||
		bytes.Contains(body, []byte("The SSL certificate error"))
}

// Result returns the result of an attempt whose answer has the given class. reason
// returns a redacted text, and is called only if the attempt failed.
func Result(class adapters.Class, r Request, a Answer, reason func() string) (adapters.Receipt, error) {
	receipt := adapters.Receipt{Code: a.Code()}
	switch class { //nolint:exhaustive // the other classes are errors
	case adapters.ClassDelivered:
		return receipt, nil
	case adapters.ClassDuplicate:
		receipt.Duplicate = true
		return receipt, nil
	case adapters.ClassAccepted:
		receipt.Accepted = true
		return receipt, nil
	}
	return receipt, fail(class, r, a, reason())
}

// fail returns the error for an answer of the given class, with its reason. Classes
// with a wait get the one that the answer asks for.
func fail(class adapters.Class, r Request, a Answer, reason string) error {
	text := fmt.Sprintf("%s %s: answered %s", r.Method, r.Target, a.Code())
	switch {
	case a.Status/100 == 3:
		text += r.redirect(a.Header)
	case a.Status == http.StatusProxyAuthRequired:
		text += ": a proxy wants other credentials: check proxy"
	case reason != "":
		text += ": " + reason
	default:
		text += ", without a reason that can be shown"
		if class == adapters.ClassUnexplained {
			text += "; it may come from a gateway"
		}
	}
	err := errors.New(text)
	wait, _ := RetryAfter(a.Header, time.Now)
	switch class {
	case adapters.ClassTransient:
		return adapters.RetryAfter(err, wait)
	case adapters.ClassThrottled:
		return adapters.Throttled(err, wait)
	case adapters.ClassUnknown:
		return doubt(a, err)
	default:
		return adapters.Classify(class, err)
	}
}

// doubt returns the error for an answer after which it is unknown whether the receiver
// has the message.
func doubt(a Answer, err error) error {
	switch {
	case !a.OK(), a.Cut != nil:
		return adapters.Unknown(err)
	case a.IsPage():
		return adapters.Unexplained(adapters.Unknown(err))
	}
	return adapters.Unclear(err)
}

// redirect names only the host of a redirect, because a receiver may repeat the request
// in the rest of the URL.
func (r Request) redirect(h http.Header) string {
	to := "elsewhere"
	if u, err := url.Parse(h.Get("Location")); err == nil && u.Host != "" {
		to = "to " + r.Redact(u.Host)
	}
	return ", a redirect " + to + ", which is not followed: set url to the receiver's address"
}

// secrets are the values, except those of the payload, that no text may repeat.
func (r Request) secrets() []string {
	var values []string
	for name, all := range r.Header {
		if harmless[name] {
			continue
		}
		for _, v := range all {
			values = append(values, v)
			if _, credential, ok := strings.Cut(v, " "); ok {
				values = append(values, credential) // Bearer …, Basic …
				if pair, err := base64.StdEncoding.DecodeString(credential); err == nil {
					_, password, _ := strings.Cut(string(pair), ":")
					values = append(values, string(pair), password)
				}
			}
		}
	}
	if r.URL != nil {
		for _, all := range r.URL.Query() {
			values = append(values, all...)
		}
	}
	if proxy, err := url.Parse(r.Proxy.Reveal()); err == nil {
		if password, ok := proxy.User.Password(); ok {
			values = append(values, password)
		}
	}
	if r.Secrets != nil {
		values = append(values, r.Secrets()...)
	}
	return values
}

// harmless headers have values that a reason may repeat.
var harmless = map[string]bool{"Content-Type": true, "Accept": true, "User-Agent": true}
