package hl7

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
)

// ack is an answer: the acknowledgement of a message (HL7 2.5.1, 2.14.8).
type ack struct {
	code     string // MSA-1
	of       string // MSA-2: the control id of the message
	text     string // MSA-3
	problems []problem
	segments [][]string // with their fields; of MSH the index of a field is one less
	marks    marks
}

// problem is one error of an answer: the segment ERR, or MSA-6 of older versions.
type problem struct {
	code   string   // of HL7 table 0357
	at     string   // the field, such as MSH-9
	levels []string // texts, from the most general
}

// marks are the separators that an answer announces.
type marks struct{ field, component, repetition, escape, subcomponent string }

// parseAck reads an answer.
func parseAck(block []byte) (*ack, error) {
	text := string(block)
	if len(text) < 8 || text[:3] != "MSH" {
		return nil, errors.New("the answer is not an HL7 message")
	}
	a := &ack{marks: marks{text[3:4], text[4:5], text[5:6], text[6:7], text[7:8]}}
	for segment := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\r' || r == '\n' }) {
		a.segments = append(a.segments, strings.Split(segment, a.marks.field))
	}
	msa := place{segment: "MSA"}
	a.code, a.of, a.text = a.at(msa.of(1)), a.at(msa.of(2)), a.at(msa.of(3))
	if a.code == "" {
		return nil, errors.New("the answer has no acknowledgement code (MSA-1)")
	}
	if p := (problem{code: a.at(place{"MSA", 6, 1}), levels: []string{a.at(place{"MSA", 6, 2})}}); p.code != "" {
		a.problems = append(a.problems, p)
	}
	for _, fields := range a.segments {
		if fields[0] == "ERR" {
			a.problems = append(a.problems, a.errors(fields)...)
		}
	}
	return a, nil
}

// errors reads a segment ERR. Before version 2.5 it has its errors in ERR-1, in the form
// segment^sequence^field^code&text. Later it is one error, with ERR-2 for the place and ERR-3
// for the code.
func (a *ack) errors(fields []string) (all []problem) {
	get := func(n int) string {
		if n < len(fields) {
			return fields[n]
		}
		return ""
	}
	location := func(text string) string {
		c := strings.Split(text, a.marks.component)
		if len(c) < 3 || c[0] == "" || c[2] == "" {
			return ""
		}
		return a.plain(c[0]) + "-" + a.plain(c[2])
	}
	if old := get(1); old != "" {
		for one := range strings.SplitSeq(old, a.marks.repetition) {
			p := problem{at: location(one)}
			if c := strings.Split(one, a.marks.component); len(c) > 3 {
				code, text, _ := strings.Cut(c[3], a.marks.subcomponent)
				p.code, p.levels = a.plain(code), []string{a.plain(text)}
			}
			all = append(all, p)
		}
	}
	if place, code := get(2), get(3); place != "" || code != "" {
		p := problem{}
		for one := range strings.SplitSeq(place, a.marks.repetition) {
			if at := location(one); at != "" {
				p.at = at
				break
			}
		}
		c := strings.Split(code, a.marks.component)
		p.code = a.plain(c[0])
		if len(c) > 1 {
			p.levels = append(p.levels, a.plain(c[1]))
		}
		for _, n := range []int{8, 7} {
			p.levels = append(p.levels, a.plain(get(n)))
		}
		all = append(all, p)
	}
	return all
}

// place is a field or component of a message.
type place struct {
	segment   string
	field     int // from 1
	component int // from 1; 0 means the whole field
}

func (p place) of(field int) place { return place{segment: p.segment, field: field} }

var placeForm = regexp.MustCompile(`^([A-Z][A-Z0-9]{2})-([1-9][0-9]?)(?:\.([1-9][0-9]?))?$`)

// parsePlace reads a place such as SCH-2 or SCH-2.1. Empty is no place.
func parsePlace(text string) (place, error) {
	if text == "" {
		return place{}, nil
	}
	m := placeForm.FindStringSubmatch(text)
	if m == nil || m[1] == "MSH" {
		return place{}, fmt.Errorf("%q is not a place in an answer: write segment, field and component, such as SCH-2 or SCH-2.1", text)
	}
	p := place{segment: m[1]}
	p.field, _ = strconv.Atoi(m[2])
	p.component, _ = strconv.Atoi(m[3])
	return p, nil
}

// at returns what is at a place of the first segment of that name: of the first repetition,
// without escapes. It is empty if there is nothing.
func (a *ack) at(p place) string {
	i := slices.IndexFunc(a.segments, func(fields []string) bool { return fields[0] == p.segment })
	if i < 0 || p.field >= len(a.segments[i]) {
		return ""
	}
	text, _, _ := strings.Cut(a.segments[i][p.field], a.marks.repetition)
	if p.component > 0 {
		c := strings.Split(text, a.marks.component)
		if p.component > len(c) {
			return ""
		}
		text = c[p.component-1]
	}
	return a.plain(text)
}

// plain undoes the escapes of separators.
func (a *ack) plain(text string) string {
	e := a.marks.escape
	return strings.TrimSpace(strings.NewReplacer(e+"E"+e, e, e+"F"+e, a.marks.field, e+"R"+e, a.marks.repetition, e+"S"+e, a.marks.component,
		e+"T"+e, a.marks.subcomponent, e+".br"+e, " ").Replace(text))
}

// rejectedHeader are the fields of the header and the error codes of HL7 table 0357 that say
// the same: message type, event, processing id and version are not supported. A message that
// is rejected for them will always be (HL7 2.5.1, table 0008).
var rejectedHeader = []string{"MSH-9", "MSH-11", "MSH-12", "200", "201", "202", "203"}

// class says what an answer means.
func (a *Adapter) class(answer *ack) adapters.Class {
	for _, p := range answer.problems {
		if class, ok := a.outcomes[p.code]; ok {
			return class
		}
	}
	if class, ok := a.outcomes[answer.code]; ok {
		return class
	}
	switch answer.code {
	case "AA":
		return adapters.ClassDelivered
	case "CA":
		return adapters.ClassAccepted
	case "AE", "CE":
		return adapters.ClassPermanent
	case "AR", "CR":
		if slices.ContainsFunc(answer.problems, func(p problem) bool {
			return slices.Contains(rejectedHeader, p.at) || slices.Contains(rejectedHeader, p.code)
		}) {
			return adapters.ClassPermanent
		}
		return adapters.ClassTransient
	}
	return adapters.ClassUnknown
}

// errorCode matches the codes of HL7 table 0357.
var errorCode = regexp.MustCompile(`^[0-9]{3}$`)

// shown is the code of an answer for the log: the acknowledgement code, and the first error
// code.
func (a *ack) shown() string {
	code := adapters.Clean(a.code, maxCode)
	for _, p := range a.problems {
		if errorCode.MatchString(p.code) {
			return code + " " + p.code
		}
	}
	return code
}

// maxCode bounds an acknowledgement code, in bytes. Real ones have two.
const maxCode = 16

// maxReason bounds the reason of a failure, in bytes.
const maxReason = 300

// maxProblems bounds the errors of an answer that are shown.
const maxProblems = 5

// reason returns what an answer says about a failure. redact hides texts that repeat what was
// sent.
func (a *ack) reason(redact func(string) string) string {
	var all []string
	add := func(text string) {
		if text = strings.TrimSpace(text); text == "" {
			return
		}
		if text = redact(text); !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	add(a.text)
	for _, p := range a.problems[:min(len(a.problems), maxProblems)] {
		if !strings.HasSuffix(a.shown(), " "+p.code) { // which the message has already
			add(p.code)
		}
		add(p.at)
		for _, text := range p.levels {
			add(text)
		}
	}
	return adapters.Clean(strings.Join(all, "; "), maxReason)
}
