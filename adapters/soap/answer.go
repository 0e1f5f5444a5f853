package soap

import (
	"errors"
	"fmt"
	"mime"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

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
	if media, _, _ := mime.ParseMediaType(ans.Header.Get("Content-Type")); strings.HasPrefix(media, "multipart/") {
		return nil, errors.New("it has several parts (MTOM or attachments), which are not supported")
	}
	if len(ans.Body) == 0 {
		return nil, errors.New("it is empty")
	}
	declared := ""
	if m := declaration.FindSubmatch(ans.Body[:min(len(ans.Body), maxBefore)]); m != nil {
		declared = string(m[1])
	}
	text, err := ans.Text(declared)
	if err != nil {
		return nil, err
	}
	if text, err = envelope(text); err != nil {
		return nil, err
	}
	roots, err := parseXML(text, nil, false)
	root := first(roots)
	if err != nil && !ans.Partial && (root == nil || !root.closed) { // what comes after the message does no harm
		return nil, err
	}
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

// maxBefore bounds the text before a SOAP message, in bytes.
const maxBefore = 8 << 10

var (
	declaration = regexp.MustCompile(`<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._:-]+)["']`)
	prologue    = regexp.MustCompile(`<\?xml\s[^>]*>`)
	begin       = regexp.MustCompile(`<(?:[A-Za-z_][\w.-]*:)?Envelope[\s/>]`)
	reference   = regexp.MustCompile(`&#(?:x[0-9a-fA-F]{1,8}|[0-9]{1,10});`)
)

// envelope makes the text of an answer readable as XML 1.0. It leaves out what some
// receivers send before the message, such as a notice of PHP, and the XML declaration:
// its encoding and version do not matter any more. Characters that XML 1.0 does not
// have become U+FFFD.
func envelope(text string) (string, error) {
	if at := begin.FindStringIndex(text); at != nil {
		before := text[:at[0]]
		start := at[0]
		if xml := prologue.FindAllStringIndex(before, -1); xml != nil {
			start = xml[len(xml)-1][0]
		}
		switch before = text[:start]; {
		case strings.Contains(before, "<!"): // a DTD is refused; a comment is read
		case len(before) > maxBefore:
			return "", fmt.Errorf("it has %d bytes of text before soap:Envelope", len(before))
		default:
			text = text[start:]
		}
	}
	if at := prologue.FindStringIndex(text); at != nil && strings.TrimSpace(text[:at[0]]) == "" {
		text = text[at[1]:]
	}
	text = reference.ReplaceAllStringFunc(text, func(ref string) string {
		digits, base := ref[2:len(ref)-1], 10
		if digits[0] == 'x' {
			digits, base = digits[1:], 16
		}
		if n, err := strconv.ParseUint(digits, base, 32); err != nil || n > unicode.MaxRune || !utf8.ValidRune(rune(n)) || !inXML(rune(n)) {
			return "\ufffd"
		}
		return ref
	})
	return strings.Map(func(r rune) rune {
		if !inXML(r) {
			return '\ufffd'
		}
		return r
	}, text), nil
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
