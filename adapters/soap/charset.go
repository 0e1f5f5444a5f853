package soap

import (
	"bytes"
	"fmt"
	"mime"
	"regexp"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// charsets are the encodings of answers that are read.
var charsets = map[string]encoding.Encoding{
	"utf-8":        encoding.Nop,
	"utf8":         encoding.Nop,
	"us-ascii":     encoding.Nop,
	"ascii":        encoding.Nop,
	"iso-8859-1":   charmap.ISO8859_1,
	"iso8859-1":    charmap.ISO8859_1,
	"iso_8859-1":   charmap.ISO8859_1,
	"latin1":       charmap.ISO8859_1,
	"windows-1252": charmap.Windows1252,
	"cp1252":       charmap.Windows1252,
	"utf-16":       unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM),
	"utf-16be":     unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM),
	"utf-16le":     unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM),
}

// marks are the first bytes of documents in UTF: a byte order mark, or "<" (XML 1.0,
// F.1).
var marks = []struct {
	begin   string
	skip    int
	charset string
}{
	{"\xef\xbb\xbf", 3, "utf-8"},
	{"\xfe\xff", 2, "utf-16be"},
	{"\xff\xfe", 2, "utf-16le"},
	{"\x00<", 0, "utf-16be"},
	{"<\x00", 0, "utf-16le"},
}

var declared = regexp.MustCompile(`^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']`)

// toUTF8 decodes a document. Its first bytes decide the encoding, then Content-Type,
// then the XML declaration (RFC 7303, 3).
func toUTF8(body []byte, contentType string) (string, error) {
	charset := "utf-8"
	_, params, _ := mime.ParseMediaType(contentType) // a bad one says nothing
	if m := declared.FindSubmatch(body[:min(len(body), 1024)]); m != nil {
		charset = string(m[1])
	}
	if named := params["charset"]; named != "" {
		charset = named
	}
	for _, mark := range marks {
		if bytes.HasPrefix(body, []byte(mark.begin)) {
			charset, body = mark.charset, body[mark.skip:]
			break
		}
	}
	enc, ok := charsets[strings.ToLower(charset)]
	if !ok {
		return "", fmt.Errorf("it is encoded in %s, but only UTF-8, UTF-16, ISO-8859-1 and windows-1252 are read", charset)
	}
	text, err := enc.NewDecoder().Bytes(body)
	if err != nil {
		return "", fmt.Errorf("it is not valid %s", charset)
	}
	return string(text), nil
}
