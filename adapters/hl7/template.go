package hl7

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// The separators of a message (HL7 2.5.1, 2.5.4). They are announced in MSH-1 and MSH-2.
const (
	fieldSeparator = "|"
	encoding       = `^~\&` // MSH-2: component, repetition, escape, subcomponent
	segmentEnd     = "\r"
)

// levels are the separators in a segment, the outermost first.
var levels = []string{fieldSeparator, "~", "^", "&"}

// part is a segment, or a piece of one: parts with a separator between them, or a text with
// placeholders.
type part struct {
	separator string
	parts     []part // of a piece with the separator in it
	text      placeholder.Template
}

// state says whether a part has a value of the message.
type state int

const (
	fixed   state = iota // it has no placeholders
	missing              // all its placeholders are optional, and their values are missing
	filled               // it has a value
)

// segmentName begins every segment.
var segmentName = regexp.MustCompile(`^[A-Z][A-Z0-9]{2}(\||$)`)

// parseSegments reads a template. Its error joins one for each mistake, with its position.
func parseSegments(text string) (all []part, err error) {
	var errs []error
	first := true
	for i, line := range strings.Split(text, "\n") {
		at := func(column int, err error) {
			errs = append(errs, fmt.Errorf("line %d, column %d: %w", i+1, column, err))
		}
		line = strings.TrimRight(line, " \t\r")
		if line == "" {
			continue
		}
		_, err := placeholder.Parse(line, known)
		for _, m := range placeholder.Mistakes(err) {
			at(1+utf8.RuneCountInString(line[:strings.Index(line, m.At)]), m)
		}
		name, fields, _ := strings.Cut(line, fieldSeparator)
		placer, _, _ := strings.Cut(fields, fieldSeparator)
		switch {
		case printable(line) != nil:
			at(1, printable(line))
		case !segmentName.MatchString(line):
			at(1, errors.New("is not a segment: begin it with a name of three capital letters and digits, then |, such as SCH|{key}"))
		case name == "MSH":
			at(1, errors.New("MSH is written by Lockstep: remove the line, and use the keys of the adapter, such as sending_application"))
		case first && name != "SCH":
			at(1, errors.New("the first segment of an appointment is SCH"))
		case name == "SCH" && placer == "":
			at(1, errors.New("SCH-1 is empty: write an id of the appointment that never changes, such as {key}"))
		}
		first = false
		all = append(all, parsePart(line, levels))
	}
	if first && text != "" {
		errs = append(errs, errors.New("has no segment"))
	}
	return all, errors.Join(errs...)
}

// known reports whether a template may have the placeholder.
func known(name string) bool { return placeholder.Any(strings.TrimSuffix(name, "?")) }

func parsePart(text string, separators []string) part {
	if len(separators) == 0 {
		t, _ := placeholder.Parse(text, known) // its mistakes are those of the line
		return part{text: t}
	}
	pieces := strings.Split(text, separators[0])
	if len(pieces) == 1 {
		return parsePart(text, separators[1:])
	}
	p := part{separator: separators[0]}
	for _, piece := range pieces {
		p.parts = append(p.parts, parsePart(piece, separators[1:]))
	}
	return p
}

// names adds the placeholders of p to all.
func (p part) names(all []string) []string {
	for _, inner := range p.parts {
		all = inner.names(all)
	}
	return append(all, p.text.Names()...)
}

// fill writes p. Empty parts at its end are left out with their separators, as HL7 allows
// (2.5.1, 2.6.1). What is missing is written as nothing, together with the fixed text around
// it.
func (p part) fill(v *placeholder.Values) (string, state, error) {
	if p.separator == "" {
		text, err := p.text.Fill(func(name string) (string, error) { return value(v, name) })
		switch {
		case errors.Is(err, placeholder.ErrLeftOut):
			return "", missing, nil
		case err != nil:
			return "", missing, err
		case len(p.text.Names()) > 0:
			return text, filled, nil
		}
		return text, fixed, nil
	}
	var texts []string
	has := fixed
	for _, inner := range p.parts {
		text, s, err := inner.fill(v)
		if err != nil {
			return "", missing, err
		}
		texts, has = append(texts, text), max(has, s)
	}
	if has == missing {
		return "", missing, nil
	}
	for len(texts) > 0 && texts[len(texts)-1] == "" {
		texts = texts[:len(texts)-1]
	}
	return strings.Join(texts, p.separator), has, nil
}

// value returns the escaped value of a placeholder. An empty text counts as missing.
func value(v *placeholder.Values, name string) (string, error) {
	text, err := v.Get(name)
	if errors.Is(err, placeholder.ErrEmpty) {
		return "", fmt.Errorf("%w: it is empty", placeholder.ErrNotKnown)
	}
	if err != nil {
		return "", err
	}
	return escape(text)
}

// escapes are those of HL7 2.5.1, 2.7: letters for separators, hexadecimal digits for a tab,
// and the command of formatted text for a new line.
var escapes = strings.NewReplacer(`\`, `\E\`, "|", `\F\`, "~", `\R\`, "^", `\S\`, "&", `\T\`,
	"\r\n", `\.br\`, "\n", `\.br\`, "\r", `\.br\`, "\t", `\X09\`)

// escape writes a value so that it has no separator. Other control characters, such as those
// that frame a message, are refused. The error does not repeat the value.
func escape(text string) (string, error) {
	text = escapes.Replace(text)
	if err := placeholder.Plain(text); err != nil {
		return "", err
	}
	return text, nil
}

// printable refuses control characters in a text of the configuration.
func printable(text string) error {
	if i := strings.IndexFunc(text, unicode.IsControl); i >= 0 {
		return fmt.Errorf("has a control character (%U), which a message cannot have", []rune(text[i:])[0])
	}
	return nil
}
