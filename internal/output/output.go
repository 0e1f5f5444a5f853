// Package output writes a program's data for people and for programs: as a
// table, as one JSON array, or as JSON lines.
//
// Text from outside is cleaned for tables and escaped in JSON, so that no key and no
// error message can move a terminal's cursor or reverse the text next to it.
package output

import (
	"fmt"
	"io"
	"os"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/term"
)

// Format is a way to write data.
type Format string

// The formats.
const (
	Table Format = "table" // aligned columns under a header
	JSON  Format = "json"  // one value: an object, or an array of them
	JSONL Format = "jsonl" // one object on each line
	CSV   Format = "csv"   // a header and a line for each row (RFC 4180); only for rows
)

// ParseFormat reads the name of a format.
func ParseFormat(name string) (Format, error) {
	switch f := Format(name); f {
	case Table, JSON, JSONL, CSV:
		return f, nil
	}
	return "", fmt.Errorf("output %q: want table, json, jsonl or csv", name)
}

// Screen is a writer whose tables fit into Columns, even if it is no terminal. With 0
// columns, tables are as wide as their rows, even on a terminal.
type Screen struct {
	io.Writer
	Columns int
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w any) bool {
	f, ok := file(w)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Width returns the columns of the screen or the terminal w, 0 if w is neither.
func Width(w any) int {
	if s, ok := w.(Screen); ok {
		return s.Columns
	}
	f, ok := file(w)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return columns
}

func file(w any) (*os.File, bool) {
	if s, ok := w.(Screen); ok {
		w = s.Writer
	}
	f, ok := w.(*os.File)
	return f, ok
}

// escape writes characters that do not print as \u escapes. encoding/json escapes only
// the first 32 of them. A program reads the same value. Outside of strings, line breaks
// are the only such characters in JSON.
func escape(text []byte) []byte {
	escaped := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == '\n' || unicode.IsGraphic(r):
			escaped = append(escaped, text[:size]...)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			escaped = fmt.Appendf(escaped, `\u%04x\u%04x`, high, low)
		default:
			escaped = fmt.Appendf(escaped, `\u%04x`, r)
		}
		text = text[size:]
	}
	return escaped
}
