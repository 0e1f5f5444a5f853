package soap

import (
	"errors"
	"fmt"
	"mime"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// message is a SOAP message that came as an answer.
type message struct {
	body  *element
	fault *fault // nil if it is none
	whole bool   // it was read to its end
}

// readMessage reads an answer of any HTTP status. Its error says why the answer is no
// SOAP message, and may have words of the receiver in it.
//
// An incomplete answer is read as far as possible: a fault with its code, or the
// beginning of a result.
func readMessage(ans exchange.Answer) (*message, error) {
	contentType := ans.Header.Get("Content-Type")
	if media, _, _ := mime.ParseMediaType(contentType); strings.HasPrefix(media, "multipart/") {
		return nil, errors.New("it has several parts (MTOM or attachments), which are not supported")
	}
	if len(ans.Body) == 0 {
		return nil, errors.New("it is empty")
	}
	text, err := toUTF8(ans.Body, contentType)
	if err != nil {
		return nil, err
	}
	roots, err := parseXML(text, nil, false)
	if err != nil && !ans.Partial {
		return nil, err
	}
	root := first(roots)
	if root == nil {
		return nil, errors.New("it has no element")
	}
	if root.name.local != "Envelope" || root.name.space != soap11 && root.name.space != soap12 {
		return nil, fmt.Errorf("its root element is <%s>, not soap:Envelope", tag(root.prefix, root.name.local))
	}
	m := &message{whole: root.closed}
	for _, e := range root.elements() {
		if e.name == (name{root.name.space, "Body"}) {
			if m.body != nil {
				return nil, errors.New("it has more than one soap:Body")
			}
			m.body = e
		}
	}
	if m.body == nil {
		return nil, errors.New("it has no soap:Body")
	}
	for _, e := range m.body.elements() {
		if e.name.local == "Fault" && slices.Contains([]string{soap11, soap12, ""}, e.name.space) { // some receivers forget it
			m.fault = readFault(e)
		}
	}
	if !m.whole && !m.decided() {
		return nil, errors.New("it was not read to its end")
	}
	return m, nil
}

// decided reports whether an incomplete message shows whether it is a fault, and if so
// its code.
func (m *message) decided() bool {
	if m.fault != nil {
		return m.fault.codes[0] != name{}
	}
	return len(m.body.elements()) > 0
}

// first returns the root element. It ignores text and a second root next to it, which
// are not XML but do no harm.
func first(roots []node) *element {
	for _, n := range roots {
		if n.element != nil {
			return n.element
		}
	}
	return nil
}
