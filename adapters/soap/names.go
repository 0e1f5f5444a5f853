package soap

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Namespaces of the specifications that this package speaks.
const (
	soap11 = "http://schemas.xmlsoap.org/soap/envelope/"
	soap12 = "http://www.w3.org/2003/05/soap-envelope"
	nsXML  = "http://www.w3.org/XML/1998/namespace"
	nsWSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
	nsWSU  = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
	nsWSA  = "http://www.w3.org/2005/08/addressing"

	nsLockstep = "urn:lockstep:template" // of lockstep:each and lockstep:if; never sent
)

// taken are the prefixes with a fixed meaning.
var taken = []string{"lockstep", "soap", "wsa", "wsse", "wsu", "xml", "xmlns"}

// name is a qualified name; space is empty for a name without a namespace.
type name struct{ space, local string }

// ncName is the usual part of the names that XML allows (Namespaces in XML 1.0, 4).
var ncName = regexp.MustCompile(`^[\pL_][\pL\pM\pN._-]*$`)

// scope is the innermost of a chain of namespace declarations; nil declares
// nothing but xml.
type scope struct {
	outer       *scope
	prefix, uri string
}

// lookup returns the namespace of prefix. The empty prefix always has a namespace,
// which is empty if no default is declared.
func (s *scope) lookup(prefix string) (uri string, ok bool) {
	for at := s; at != nil; at = at.outer {
		if at.prefix == prefix {
			return at.uri, true
		}
	}
	if prefix == "xml" {
		return nsXML, true
	}
	return "", prefix == ""
}

// declare returns the prefixes that templates and paths can use: the configured
// ones and those of the specifications, soap for the given version.
func declare(configured map[string]string, version string) *scope {
	all := map[string]string{"soap": envelopeOf(version), "wsse": nsWSSE, "wsu": nsWSU, "wsa": nsWSA, "lockstep": nsLockstep}
	maps.Copy(all, configured)
	var s *scope
	for _, prefix := range slices.Backward(slices.Sorted(maps.Keys(all))) {
		s = &scope{outer: s, prefix: prefix, uri: all[prefix]}
	}
	return s
}

func envelopeOf(version string) string {
	if version == Version12 {
		return soap12
	}
	return soap11
}

func checkNamespaces(configured map[string]string) []error {
	var errs []error
	for _, prefix := range slices.Sorted(maps.Keys(configured)) {
		uri := configured[prefix]
		wrong := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("namespaces[%q]: "+format, append([]any{prefix}, args...)...))
		}
		switch {
		case slices.Contains(taken, prefix):
			wrong("the prefix is taken; choose another than %s", strings.Join(taken, ", "))
		case !ncName.MatchString(prefix):
			wrong("is not a prefix: use a letter, then letters, digits, - or _")
		}
		switch {
		case uri == "":
			wrong("has no namespace; write its URI")
		case strings.TrimSpace(uri) != uri || xmlText(uri) != nil:
			wrong("has a space at its ends or a character that XML cannot carry")
		}
	}
	return errs
}

// parseName reads a name such as cal:Busy. Without a prefix it means that name in any
// namespace, and anySpace is true.
func parseName(text string, known *scope) (n name, anySpace bool, err error) {
	prefix, local, prefixed := strings.Cut(text, ":")
	if !prefixed {
		prefix, local = "", text
	}
	switch {
	case !ncName.MatchString(local) || prefixed && !ncName.MatchString(prefix):
		return name{}, false, fmt.Errorf("%q is not a name such as cal:entryId", text)
	case !prefixed:
		return name{local: local}, true, nil
	}
	uri, ok := known.lookup(prefix)
	if !ok {
		return name{}, false, undeclared(prefix)
	}
	return name{space: uri, local: local}, false, nil
}

// ofEnvelope reports whether n is an element of the envelope itself, around operations
// and header blocks.
func ofEnvelope(n name) bool {
	return (n.space == soap11 || n.space == soap12) && (n.local == "Envelope" || n.local == "Header" || n.local == "Body")
}

func undeclared(prefix string) error {
	return fmt.Errorf("the prefix %s is not declared; add it to namespaces", prefix)
}
