package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// canary is a marker: a text that is in one place of the world. Anywhere
// outside this place, the program has leaked it.
type canary struct {
	name   string
	core   string // the text to search for; letters and digits, so that it is one word everywhere
	secret bool   // a credential, not data of an event
}

// word returns a core that cannot be guessed.
func word(alphabet string, length int) string {
	b := make([]byte, length)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b)
}

const (
	letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	digits  = "0123456789"
)

// finder finds canaries in texts.
type finder struct {
	pieces map[string]sighting // by pieces of spellings, in lower case
	starts [1 << 18]bool       // which pieces there can be, by their first bytes
	runs   []string            // longer spellings that are found as a whole, and
	names  []sighting          // what each of them is
}

// sighting is a canary and how it was spelled.
type sighting struct{ name, form string }

// piece is the length from which part of a canary is found.
const piece = 12

func newFinder(canaries ...canary) *finder {
	a := &finder{pieces: map[string]sighting{}}
	for _, c := range canaries {
		a.add(c.core, sighting{c.name, "as it is"})
		a.add(hex.EncodeToString([]byte(c.core)), sighting{c.name, "hexadecimal"})
		for shift := range 3 { // the bytes before it decide how base64 spells it
			whole := []byte(strings.Repeat("x", shift) + c.core)
			for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
				a.add(encoding.EncodeToString(whole)[(shift*8+5)/6:len(whole)*8/6], sighting{c.name, "base64"})
			}
		}
		a.runs = append(a.runs, strings.Trim(decimals(c.core[:piece]), "[]"))
		a.names = append(a.names, sighting{c.name, "decimal bytes"})
	}
	return a
}

func (a *finder) add(spelling string, s sighting) {
	spelling = strings.ToLower(spelling)
	for i := range len(spelling) - piece + 1 {
		if _, taken := a.pieces[spelling[i:i+piece]]; !taken {
			a.pieces[spelling[i:i+piece]] = s
			a.starts[start(spelling[i:])] = true
		}
	}
}

// decimals returns the bytes of text as %v prints them.
func decimals(text string) string {
	var all []string
	for _, b := range []byte(text) {
		all = append(all, strconv.Itoa(int(b)))
	}
	return "[" + strings.Join(all, " ") + "]"
}

// start returns the first three bytes of a text as an index.
func start(text string) int {
	return int(text[0]&63)<<12 | int(text[1]&63)<<6 | int(text[2]&63)
}

// find returns the canaries in text with their positions, each canary once per
// spelling.
func (a *finder) find(text string) map[sighting]string {
	found := map[sighting]string{}
	note := func(s sighting, text string, i int) {
		if _, twice := found[s]; !twice {
			found[s] = text[max(0, i-100):min(len(text), i+100)]
		}
	}
	for i, view := range []string{text, unescaped(text)} {
		if i > 0 && view == text {
			break
		}
		lower := strings.ToLower(view)
		for i := range len(lower) - piece + 1 {
			if !a.starts[start(lower[i:])] {
				continue
			}
			if s, ok := a.pieces[lower[i:i+piece]]; ok {
				note(s, lower, i)
			}
		}
		for i, run := range a.runs {
			if at := strings.Index(lower, run); at >= 0 {
				note(a.names[i], lower, at)
			}
		}
	}
	return found
}

var escapes = regexp.MustCompile(`%[0-9a-fA-F]{2}|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}`)

// unescaped undoes all escapes of URLs, JSON, Go and HTML.
func unescaped(text string) string {
	text = escapes.ReplaceAllStringFunc(text, func(escape string) string {
		n, err := strconv.ParseUint(strings.TrimLeft(escape, `%\xu`), 16, 32)
		if err != nil {
			return escape
		}
		return string(rune(n))
	})
	return html.UnescapeString(text)
}

// spellings are the ways in which receivers repeat a text.
func spellings() []func(string) string {
	each := func(format string) func(string) string {
		return func(s string) string {
			var b strings.Builder
			for i := range len(s) {
				fmt.Fprintf(&b, format, s[i])
			}
			return b.String()
		}
	}
	return []func(string) string{
		func(s string) string { return s },
		strings.ToUpper,
		strings.ToLower,
		func(s string) string { return s[:len(s)*2/3] },
		func(s string) string { return s[len(s)/3:] },
		func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte("x" + s)) },
		func(s string) string { return hex.EncodeToString([]byte(s)) },
		url.QueryEscape,
		each("%%%02X"),
		each(`\u%04x`),
		each("&#%d;"),
		func(s string) string { b, _ := json.Marshal(s); return string(b) },
		func(s string) string { return fmt.Sprintf("%q", `"`+s+`"`) },
	}
}

// The canary test depends on its search, so the search has a test too.
func TestCanariesAreFoundHoweverTheyAreSpelled(t *testing.T) {
	token := canary{name: "token", core: word(letters+digits, 26)}
	a := newFinder(token, canary{name: "another", core: word(letters, 20)})
	for i, spell := range append(spellings(), decimals) {
		for _, around := range []string{"", "a", "ab", "abc", `"`, "é"} {
			text := `level=INFO msg="` + spell(around+token.core+around) + `"`
			found := a.find(text)
			if len(found) == 0 {
				t.Errorf("spelling %d: not found in %s", i, text)
			}
			for s := range found {
				if s.name != token.name {
					t.Errorf("spelling %d: %s is taken for %s", i, text, s.name)
				}
			}
		}
	}
	other := word(letters, 200)
	if found := a.find(other); len(found) > 0 {
		t.Errorf("found %v in %s", found, other)
	}
}
