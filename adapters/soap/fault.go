package soap

import (
	"cmp"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
)

// fault is a SOAP fault of either version.
type fault struct {
	codes  []name // the code, then the subcodes from the outermost on
	reason string
	at     *element // soap:Fault
}

// readFault reads the forms of both versions, because receivers mix them.
func readFault(e *element) *fault {
	f := &fault{at: e}
	add := func(code *element) {
		if code != nil && code.closed { // otherwise the answer was cut inside it
			f.codes = append(f.codes, qualified(code))
		}
	}
	if code := e.child("faultcode"); code != nil { // SOAP 1.1, 4.4
		add(code)
	} else { // SOAP 1.2, 5.4
		for code := e.child("Code"); code != nil; code = code.child("Subcode") {
			add(code.child("Value"))
		}
	}
	text := e.child("faultstring")
	if reason := e.child("Reason"); text == nil && reason != nil {
		text = english(reason)
	}
	if text != nil && text.closed { // otherwise it may end in half of a value, which nobody recognises
		f.reason = text.content()
	}
	if len(f.codes) == 0 {
		f.codes = []name{{}}
	}
	return f
}

// english returns the English text of a reason, otherwise the first text, or nil if
// there is none.
func english(reason *element) *element {
	texts := reason.elements()
	if len(texts) == 0 {
		return nil
	}
	for _, text := range texts {
		for _, a := range text.attrs {
			if a.name == (name{nsXML, "lang"}) && strings.HasPrefix(strings.ToLower(a.value), "en") {
				return text
			}
		}
	}
	return texts[0]
}

// qualified reads the text of e as a qualified name. Without a declared prefix it has
// no namespace.
func qualified(e *element) name {
	text := e.content()
	prefix, local, ok := strings.Cut(text, ":")
	if !ok {
		return name{local: text}
	}
	uri, _ := e.scope.lookup(prefix)
	return name{space: uri, local: local}
}

// canonical gives the codes of the two versions one spelling: that of SOAP 1.1. A code
// without a namespace counts as one of SOAP's.
func canonical(n name) name {
	switch n.space {
	case "", soap12:
		n.space = soap11
	}
	if n.space != soap11 {
		return n
	}
	first, rest, dotted := strings.Cut(n.local, ".")
	switch first {
	case "Sender":
		first = "Client"
	case "Receiver":
		first = "Server"
	}
	n.local = first
	if dotted {
		n.local += "." + rest
	}
	return n
}

// senders are the codes that blame the message, which would fail again (SOAP 1.1,
// 4.4.1; SOAP 1.2, 5.4.6).
var senders = []string{"Client", "VersionMismatch", "MustUnderstand", "DataEncodingUnknown"}

// security are the faults of Web Services Security 1.0, 12 that blame the token.
// Receivers use them as code or subcode.
var security = []string{"FailedAuthentication", "InvalidSecurity", "FailedCheck", "UnsupportedSecurityToken", "InvalidSecurityToken"}

// maxSubcodes bounds the codes of a fault that a text shows.
const maxSubcodes = 4

const expired = "MessageExpired"

// class returns the default class of f.
func (f *fault) class() adapters.Class {
	switch {
	case f.has(security...), f.has(expired):
		return adapters.ClassAuth
	}
	code := canonical(f.codes[0])
	first, _, _ := strings.Cut(code.local, ".")
	if code.space == soap11 && slices.Contains(senders, first) {
		return adapters.ClassPermanent
	}
	return adapters.ClassTransient
}

// has reports whether one of the codes is one of those locals of WS-Security.
func (f *fault) has(locals ...string) bool {
	return slices.ContainsFunc(f.codes, func(c name) bool {
		known := c.space == "" || c.space == nsWSU || strings.Contains(c.space, "secext") // of any version
		return known && slices.Contains(locals, c.local)
	})
}

// code shows a code as a name with the prefix that the configuration or the
// specifications give its namespace.
func (n name) code(known *scope) string {
	if n.space == soap11 || n.space == soap12 {
		return "soap:" + n.local
	}
	for s := known; s != nil && n.space != ""; s = s.outer {
		if s.uri == n.space {
			return s.prefix + ":" + n.local
		}
	}
	return n.local
}

// text returns the text of f in one line, without its detail. redact makes its parts
// safe.
func (f *fault) text(known *scope, redact func(string) string) string {
	var b strings.Builder
	b.WriteString(cmp.Or(redact(f.codes[0].code(known)), "a fault without a code"))
	for _, sub := range f.codes[1:min(len(f.codes), maxSubcodes)] {
		b.WriteString(" (" + redact(sub.code(known)) + ")")
	}
	if f.reason != "" {
		b.WriteString(": " + redact(f.reason))
	}
	if f.has(expired) {
		b.WriteString(" (compare the clocks of both sides)")
	}
	return b.String()
}
