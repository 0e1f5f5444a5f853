package relay

import (
	"bytes"
	"encoding/json"
	"io"
	"net/url"
	"strings"
	"unicode"
)

// plainWords stand in reasons and in payloads alike and name nobody: masking
// them would only hide what is wrong.
var plainWords = wordSet(`a an and are as at be been by can cannot could for from has have in into is it its must no not of off
on one or that the this to was were will with
accepted already answer api available bad body booked busy calendar cancelled case civil closed code conflict court courthouse courtroom
created date day days down duplicate duration empty end error event exists expected failed family field fixed forbidden format
found future gateway given hearing hearings hour hours http https id inactive internal invalid json key length limit list
location long missing minutes month name new null number old open past please post put delete get patch reason refused request
required reschedule rescheduled room rooms scheduled schema server service session short start state status system time title
too transaction type unknown unavailable update updated url utc valid value values venue version wrong xml year zone`)

func wordSet(words string) map[string]struct{} {
	set := map[string]struct{}{}
	for word := range strings.FieldsSeq(words) {
		set[word] = struct{}{}
	}
	return set
}

// redact masks every word of text that is also in a value of the payload, in
// whatever case, order or URL escape, and every longer number that is part of
// one. An error may repeat what the receiver said, and a receiver may repeat
// whom the hearing is about; the log holds no names.
func redact(text string, payload []byte) string {
	words, digits := valuesOf(payload)
	if unescaped, err := url.PathUnescape(text); err == nil {
		text = unescaped
	}
	text = visible(text) // what is left out later must not join the halves of a name
	var b strings.Builder
	for token := range tokens(text) {
		lower := strings.ToLower(token)
		_, named := words[lower]
		_, plain := plainWords[lower]
		switch {
		case named && !plain, len(token) >= 4 && isNumber(token) && strings.Contains(digits, token):
			b.WriteString("***")
		default:
			b.WriteString(token)
		}
	}
	return b.String()
}

// valuesOf returns the words of all values of a JSON document, in lower case,
// and the digits of each value, separated by blanks.
func valuesOf(document []byte) (words map[string]struct{}, digits string) {
	words = map[string]struct{}{}
	var numbers strings.Builder
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber()
	var inObject []bool // of the open objects and arrays
	key := false        // the next string is a member's name
	for {
		t, err := decoder.Token()
		if err != nil {
			if err != io.EOF {
				clear(words)
			}
			return words, numbers.String()
		}
		value := ""
		switch t := t.(type) {
		case json.Delim:
			if t == '{' || t == '[' {
				inObject = append(inObject, t == '{')
			} else {
				inObject = inObject[:len(inObject)-1]
			}
			key = len(inObject) > 0 && inObject[len(inObject)-1]
			continue
		case string:
			if key {
				key = false
				continue
			}
			value = t
		case json.Number:
			value = t.String()
		}
		key = len(inObject) > 0 && inObject[len(inObject)-1]
		for token := range tokens(value) {
			if r := []rune(token)[0]; unicode.IsLetter(r) && len(token) > 1 {
				words[strings.ToLower(token)] = struct{}{}
			}
		}
		for _, r := range value {
			if unicode.IsDigit(r) {
				numbers.WriteRune(r)
			}
		}
		numbers.WriteByte(' ')
	}
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

func isNumber(token string) bool {
	return strings.IndexFunc(token, func(r rune) bool { return !unicode.IsDigit(r) }) < 0
}
