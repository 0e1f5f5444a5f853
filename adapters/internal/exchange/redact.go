package exchange

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"html"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	// minHidden is the length from which a value is hidden: shorter ones would
	// blank out ordinary words and tell nothing.
	minHidden = 4

	// minPiece is the length from which part of a value is hidden within a
	// word; few words that a reason needs are longer.
	minPiece = 12

	// minDecoded is the length from which part of a value is hidden that only
	// decoding shows.
	minDecoded = 6

	// maxRedacted is how much of a text is looked at, and maxRun how much of a run
	// of characters is decoded; more than is kept of either.
	maxRedacted, maxRun = 4 << 10, 256

	mask = "***"
)

// redact replaces what tells one of the values by "***": a value in whatever
// case, words that share a longer piece with one, and what is one in base64 or
// hexadecimal. Escapes are undone first: a receiver that quotes what it was sent
// escapes it. The text is cut.
func redact(text string, values []string) string {
	values = hideable(values)
	text = shorten(without(Clean(unescape(text), MaxAnswer), values))

	suspects := map[int]map[string][]span{minPiece: {}, minDecoded: {}} // by the length of the pieces
	note := func(length int, piece string, s span) {
		for i := range len(piece) - length + 1 {
			at := piece[i : i+length]
			if old := suspects[length][at]; len(old) == 0 || old[len(old)-1] != s {
				suspects[length][at] = append(old, s)
			}
		}
	}
	for _, at := range words.FindAllStringIndex(text, -1) {
		note(minPiece, lower(text[at[0]:at[1]]), span{at[0], at[1]})
	}
	var masked []span
	for _, at := range runs.FindAllStringIndex(text, -1) {
		s := span{at[0], at[1]}
		decodings(text[s.from:min(s.to, s.from+maxRun)], func(decoded string) { note(minDecoded, lower(decoded), s) })
	}
	for _, v := range values {
		for length, of := range suspects {
			for i := 0; i+length <= len(v) && len(of) > 0; i++ {
				masked = append(masked, of[v[i:i+length]]...)
				delete(of, v[i:i+length])
			}
		}
	}
	slices.SortFunc(masked, func(a, b span) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(b.to, a.to)) })
	var b strings.Builder
	end := 0
	for _, s := range masked {
		if s.from >= end {
			b.WriteString(text[end:s.from] + mask)
		}
		end = max(end, s.to)
	}
	b.WriteString(text[end:])
	return b.String()
}

// span is a part of a text.
type span struct{ from, to int }

var (
	words = regexp.MustCompile(`[\pL\pM\pN]+`)
	runs  = regexp.MustCompile(`[A-Za-z0-9+/_-]{8,}`) // what base64 and hexadecimal are written in
)

// hideable returns the values as they would stand in a reason, in lower case,
// the longest first so that none is left in part.
func hideable(values []string) []string {
	var all []string
	for _, v := range values {
		if len(v) > MaxAnswer {
			v = v[:MaxAnswer] // no answer can hold more of it
		}
		for _, form := range []string{v, unescape(v)} {
			if form = lower(Clean(form, MaxAnswer)); len(form) >= minHidden {
				all = append(all, form)
			}
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b)) })
	return slices.Compact(all)
}

// without replaces the values, which are in lower case.
func without(text string, values []string) string {
	folded := lower(text)
	for _, v := range values {
		if !strings.Contains(folded, v) {
			continue
		}
		var b strings.Builder
		end := 0
		for {
			i := strings.Index(folded[end:], v)
			if i < 0 {
				break
			}
			b.WriteString(text[end:end+i] + mask)
			end += i + len(v)
		}
		text = b.String() + text[end:]
		folded = lower(text)
	}
	return text
}

// shorten cuts text between two words.
func shorten(text string) string {
	if len(text) <= maxRedacted {
		return text
	}
	end := strings.LastIndexByte(text[:maxRedacted], ' ')
	if end < 0 {
		return mask
	}
	return text[:end]
}

// lower folds the case of ASCII, so that no place in text moves.
func lower(text string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, text)
}

// decodings calls yield with everything that run, or an end of it behind a
// slash, may be an encoding of. Where base64 begins within it decides about
// every byte.
func decodings(run string, yield func(decoded string)) {
	for from := 0; ; {
		for skip := range min(4, len(run)-from) {
			part := run[from+skip:]
			if len(part)%4 == 1 {
				part = part[:len(part)-1]
			}
			for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				if b, err := encoding.DecodeString(part); err == nil {
					yield(string(b))
				}
			}
			b, _ := hex.DecodeString(run[from+skip:]) // as far as it is hexadecimal
			yield(string(b))
		}
		slash := strings.IndexByte(run[from:], '/')
		if slash < 0 {
			return
		}
		from += slash + 1
	}
}

var escapes = regexp.MustCompile(`%[0-9a-fA-F]{2}|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}`)

// unescape undoes the escapes of URLs, JSON and HTML, wherever they stand and
// however often.
func unescape(text string) string {
	const most = 4
	for range most {
		plain := html.UnescapeString(escapes.ReplaceAllStringFunc(text, func(escape string) string {
			n, err := strconv.ParseUint(strings.TrimLeft(escape, `%\xu`), 16, 16)
			if err != nil {
				return escape
			}
			if escape[0] == '%' {
				return string([]byte{byte(n)})
			}
			return string(rune(n))
		}))
		if plain == text {
			break
		}
		text = plain
	}
	return text
}
