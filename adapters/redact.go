package adapters

import (
	"bytes"
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
	minDigits  = 4  // digits of the shortest number that counts

	maxText  = 4 << 10  // bytes of a text that are looked at
	maxShown = 1 << 10  // bytes of a text that are shown
	maxValue = 64 << 10 // bytes of a value that are looked at
	maxRun   = 256      // bytes of a run of characters that is decoded
)

// Hidden stands for a text that is not shown.
const Hidden = "(hidden, because it repeats what was sent)"

// Redact makes text from a receiver or an error safe for logs, the delivery log and
// screens. It cleans and cuts the text as [Clean] does, to 1 KiB at most, and joins
// its white space. A text that [Repeats] what was sent is not shown at all: the result is [Hidden].
func Redact(text string, limit int, payload []byte, secrets ...string) string {
	if Repeats(text, payload, secrets...) {
		return Hidden
	}
	if limit <= 0 || limit > maxShown {
		limit = maxShown
	}
	return Clean(fold(text, maxText), limit)
}

// Repeats reports whether a text from a receiver repeats what was sent. payload is a
// JSON document, or nil. It looks for
//
//   - a secret or a value of the payload, in any case and in any escape of URLs, JSON
//     or HTML
//   - a word that holds a longer piece of one, plain or in base64 or hexadecimal
//   - a word of a value of the payload, and a longer number that is part of one
//
// An allow-list has words that name nobody, such as "courtroom". They do not count, even
// if the payload has them. Every other word of the payload does: it may be a party's
// name, which must not get into the delivery log.
func Repeats(text string, payload []byte, secrets ...string) bool {
	named := slices.DeleteFunc(texts(payload), plain)
	hidden := forms(slices.Concat(secrets, named))
	text = fold(unescape(fold(text, maxText)), maxText)
	return hasValue(text, hidden) || hasPiece(text, hidden) || hasWord(text, named)
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
// To hide them would only hide what is wrong.
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
func fold(text string, most int) string {
	return strings.Join(strings.Fields(Clean(text[:min(len(text), most)], 0)), " ")
}

// forms returns the values as a folded text has them, in lower case.
func forms(values []string) []string {
	var all []string
	for _, v := range values {
		for _, form := range slices.Compact([]string{v, unescape(v)}) {
			if form = lower(fold(form, maxValue)); len(form) >= minHidden {
				all = append(all, form)
			}
		}
	}
	return all
}

// hasValue reports whether text has one of the values, which are in lower case.
func hasValue(text string, values []string) bool {
	text = lower(text)
	return slices.ContainsFunc(values, func(v string) bool { return strings.Contains(text, v) })
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

// hasPiece reports whether a word of text shares a longer piece with one of the values,
// which are in lower case, or a run of characters does so once decoded.
func hasPiece(text string, values []string) bool {
	pieces := map[int]map[string]bool{minPiece: {}, minDecoded: {}} // by their length
	note := func(length int, text string) {
		for i := range len(text) - length + 1 {
			pieces[length][text[i:i+length]] = true
		}
	}
	for _, word := range words.FindAllString(text, -1) {
		note(minPiece, lower(word))
	}
	for _, run := range runs.FindAllString(text, -1) {
		decodings(run[:min(len(run), maxRun)], func(decoded string) { note(minDecoded, lower(decoded)) })
	}
	return slices.ContainsFunc(values, func(v string) bool {
		for length, of := range pieces {
			for i := 0; i+length <= len(v) && len(of) > 0; i++ {
				if of[v[i:i+length]] {
					return true
				}
			}
		}
		return false
	})
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

// hasWord reports whether text has a word of the values, except plain ones, or a longer
// number that is part of a value's digits.
func hasWord(text string, values []string) bool {
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
	for token := range tokens(text) {
		word := strings.ToLower(token)
		number := unicode.IsDigit([]rune(token)[0])
		if named[word] && !plainWords[word] || number && len(token) >= minDigits && strings.Contains(digits, token) {
			return true
		}
	}
	return false
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
