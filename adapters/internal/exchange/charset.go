package exchange

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/ianaindex"
	"golang.org/x/text/encoding/unicode"
)

// marks are the first bytes of documents in UTF: a byte order mark, or "<" (XML 1.0,
// F.1).
var marks = []struct {
	begin    string
	skip     int
	encoding encoding.Encoding
}{
	{"\xef\xbb\xbf", 3, encoding.Nop},
	{"\xfe\xff", 2, unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM)},
	{"\xff\xfe", 2, unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM)},
	{"\x00<", 0, unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM)},
	{"<\x00", 0, unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM)},
}

// Text returns the body of a in UTF-8. Its first bytes decide the encoding, then
// Content-Type, then declared, which is the encoding that the document itself names
// (RFC 7303, 3). Bytes that the encoding does not have become U+FFFD.
func (a Answer) Text(declared string) (string, error) {
	body := a.Body
	enc, err := encodingOf(a.charset(declared))
	for _, mark := range marks {
		if bytes.HasPrefix(body, []byte(mark.begin)) {
			enc, err, body = mark.encoding, nil, body[mark.skip:]
			break
		}
	}
	if err != nil {
		return "", err
	}
	text, err := enc.NewDecoder().Bytes(body)
	if err != nil {
		return "", errors.New("it is not valid in its encoding")
	}
	return strings.ToValidUTF8(string(text), "\ufffd"), nil
}

// charset returns the name of the encoding: that of Content-Type, otherwise declared,
// otherwise UTF-8.
func (a Answer) charset(declared string) string {
	_, params, _ := mime.ParseMediaType(a.Header.Get("Content-Type")) // a bad one says nothing
	for _, name := range []string{params["charset"], declared} {
		if name = strings.Trim(name, `'" `); name != "" {
			return name
		}
	}
	return "utf-8"
}

// encodingOf knows the names of the WHATWG and of IANA.
func encodingOf(charset string) (encoding.Encoding, error) {
	enc, err := htmlindex.Get(charset)
	if err != nil {
		enc, err = ianaindex.IANA.Encoding(charset)
	}
	switch {
	case err != nil || enc == nil || enc == encoding.Replacement:
		return nil, fmt.Errorf("it is encoded in %s, which is not read", charset)
	case enc == unicode.UTF8:
		return encoding.Nop, nil
	}
	return enc, nil
}
