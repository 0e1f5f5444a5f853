package adapters

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

const (
	minHidden  = 4  // bytes of a value; shorter ones are parts of ordinary words
	minPiece   = 12 // bytes of a value inside a word; few words that a reason needs are longer
	minDecoded = 6  // bytes of a value that only decoding shows
	minDigits  = 4  // digits of the shortest number that is masked

	maxText     = 64 << 10 // bytes of a text or a value that are looked at
	maxRedacted = 4 << 10  // bytes of a text that are kept
	maxRun      = 256      // bytes of a run of characters that is decoded
)

// Redact makes text from a receiver or an error safe for logs, the delivery log and
// screens. Such text may repeat what was sent. payload is a JSON document, or nil.
// Redact cleans and cuts the text as [Clean] does, joins its white space, and writes
// "***" instead of
//
//   - a secret or a value of the payload, in any case and in any escape of URLs, JSON
//     or HTML
//   - a word that holds a longer piece of one, plain or in base64 or hexadecimal
//   - each word of a value of the payload, and each longer number that is part of one
//
// An allow-list has words that name nobody, such as "courtroom". They stay, even if the
// payload has them. No other word of the payload is shown: it may be a party's name,
// which must not get into the delivery log.
func Redact(text string, limit int, payload []byte, secrets ...string) string {
	named := slices.DeleteFunc(texts(payload), plain)
	hidden := forms(slices.Concat(secrets, named))
	text = maskPieces(shorten(maskValues(fold(unescape(fold(text))), hidden)), hidden)
	return Clean(maskWords(text, named), limit)
}

// plain reports whether all words of value are plainWords and it has no longer number.
func plain(value string) bool {
	digits := 0
	for token := range tokens(value) {
		switch r := []rune(token)[0]; {
		case unicode.IsDigit(r):
			digits += len(token)
		case unicode.IsLetter(r) && !plainWords[strings.ToLower(token)]:
			return false
		}
	}
	return digits < minDigits
}

// plainWords is the allow-list: words that reasons and payloads have in common.
// Masking them would only hide what is wrong.
var plainWords = wordSet(`a an and are as at be been by can cannot could for from has have in into is it its must no not of off
on one or that the this to was were will with
accepted already answer api available bad body booked busy calendar cancelled case civil closed code conflict court courthouse courtroom
created date day days down duplicate duration empty end error event exists expected failed family field fixed forbidden format
found future gateway given hearing hearings hour hours http https id inactive internal invalid json key length limit list
location long missing minutes month name new null number old open past please post put delete get patch reason refused request
required reschedule rescheduled room rooms scheduled schema server service session short start state status system time title
too transaction type unknown unavailable update updated url utc valid value values venue version wrong xml year zone`)

func wordSet(words string) map[string]bool {
	set := map[string]bool{}
	for word := range strings.FieldsSeq(words) {
		set[word] = true
	}
	return set
}

// texts returns every string and number of a JSON document. It returns names of members
// too, if they are below the top and not written like an identifier: such a name is
// more likely a person's than a field's.
func texts(document []byte) []string {
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	var values []string
	var collect func(v any, depth int)
	collect = func(v any, depth int) {
		switch v := v.(type) {
		case string:
			values = append(values, v)
		case json.Number:
			values = append(values, v.String())
		case []any:
			for _, e := range v {
				collect(e, depth)
			}
		case map[string]any:
			for name, e := range v {
				if depth > 0 && !identifier.MatchString(name) {
					values = append(values, name)
				}
				collect(e, depth+1)
			}
		}
	}
	collect(v, 0)
	return values
}

// identifier matches names that a program gives: camelCase and snake_case.
var identifier = regexp.MustCompile(`^[a-z][A-Za-z0-9_]*$`)

// fold cleans text and writes one space for all white space between two words.
func fold(text string) string {
	return strings.Join(strings.Fields(Clean(text[:min(len(text), maxText)], 0)), " ")
}

// forms returns the values as a folded text has them, in lower case. The longest comes
// first, so that no part of it is left.
func forms(values []string) []string {
	var all []string
	for _, v := range values {
		for _, form := range slices.Compact([]string{v, unescape(v)}) {
			if form = lower(fold(form)); len(form) >= minHidden {
				all = append(all, form)
			}
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), strings.Compare(a, b)) })
	return slices.Compact(all)
}

// maskValues masks the values, which are in lower case.
func maskValues(text string, values []string) string {
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

// lower changes ASCII letters only, so that every byte keeps its position.
func lower(text string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, text)
}

var (
	words = regexp.MustCompile(`[\pL\pM\pN]+`)
	runs  = regexp.MustCompile(`[A-Za-z0-9+/_-]{8,}`) // what base64 and hexadecimal are written in
)

// maskPieces masks words that share a longer piece with one of the values, which
// are in lower case, and runs that do so once decoded.
func maskPieces(text string, values []string) string {
	type span struct{ from, to int }
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
	for _, at := range runs.FindAllStringIndex(text, -1) {
		s := span{at[0], at[1]}
		decodings(text[s.from:min(s.to, s.from+maxRun)], func(decoded string) { note(minDecoded, lower(decoded), s) })
	}
	var masked []span
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

// decodings calls yield with each text that run may encode, or that its part after a
// slash may encode. Base64 may begin at any character of run.
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

// maskWords masks the words of the values, except plain ones. It also masks longer
// numbers that are part of a value's digits.
func maskWords(text string, values []string) string {
	named := map[string]bool{}
	var numbers strings.Builder
	for _, v := range values {
		for token := range tokens(v) {
			switch r := []rune(token)[0]; {
			case unicode.IsDigit(r):
				numbers.WriteString(token)
			case unicode.IsLetter(r) && len(token) > 1:
				named[strings.ToLower(token)] = true
			}
		}
		numbers.WriteByte(' ')
	}
	digits := numbers.String()
	var b strings.Builder
	for token := range tokens(text) {
		word := strings.ToLower(token)
		number := unicode.IsDigit([]rune(token)[0])
		if named[word] && !plainWords[word] || number && len(token) >= minDigits && strings.Contains(digits, token) {
			token = mask
		}
		b.WriteString(token)
	}
	return b.String()
}

// tokens yields the words, the numbers and what lies between, in order.
func tokens(text string) func(yield func(string) bool) {
	kind := func(r rune) int {
		switch {
		case unicode.IsLetter(r) || unicode.IsMark(r):
			return 1
		case unicode.IsDigit(r):
			return 2
		}
		return 0
	}
	return func(yield func(string) bool) {
		from, last := 0, -1
		for i, r := range text {
			if k := kind(r); k != last {
				if i > from && !yield(text[from:i]) {
					return
				}
				from, last = i, k
			}
		}
		if from < len(text) {
			yield(text[from:])
		}
	}
}

var escapes = regexp.MustCompile(`%[0-9a-fA-F]{2}|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}`)

// unescape undoes the escapes of URLs, JSON and HTML anywhere in text, up to four
// times. A receiver that quotes a request escapes it.
func unescape(text string) string {
	const most = 4
	for i := 0; i < most && strings.ContainsAny(text, `%\&`); i++ {
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
