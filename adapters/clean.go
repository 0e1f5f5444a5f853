package adapters

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ansi matches the escape sequences of terminals (ECMA-48): CSI, OSC and the
// two-character ones.
var ansi = regexp.MustCompile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[@-Z\\\\^_])")

// Clean makes text from outside safe to store and to show in one line. Line breaks and
// tabs become spaces. Escape sequences of terminals, invalid UTF-8 and all characters
// that do not print, such as NUL and right-to-left overrides, are removed. A text
// longer than limit bytes is cut between two characters and ends in "…". A limit of 0
// means no limit.
func Clean(text string, limit int) string {
	text = strings.ToValidUTF8(text, "")
	if strings.Contains(text, "\x1b") {
		text = ansi.ReplaceAllString(text, "")
	}
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r), r == '\u2028', r == '\u2029':
			return ' '
		case r == utf8.RuneError, !unicode.IsGraphic(r):
			return -1
		}
		return r
	}, text)
	if limit <= 0 || len(text) <= limit {
		return text
	}
	const ellipsis = "…"
	end := max(limit-len(ellipsis), 0)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + ellipsis
}
