package soap

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// rule is one of [Config.Answers].
type rule struct {
	code, subcode *pattern
	path          path
	value         string
	class         adapters.Class
}

// pattern matches a code, and codes that extend it with a dot.
type pattern struct {
	name     name
	anySpace bool
}

func parseAnswers(answers []Answer, known *scope) ([]rule, error) {
	var (
		rules []rule
		errs  []error
	)
	for i, a := range answers {
		wrong := func(field string, err error) {
			if err != nil {
				errs = append(errs, fmt.Errorf("answers[%d]%s: %w", i, field, err))
			}
		}
		r := rule{value: a.Value, class: adapters.Class(a.Class)}
		var err error
		r.code, err = parsePattern(a.Code, known)
		wrong(".code", err)
		r.subcode, err = parsePattern(a.Subcode, known)
		wrong(".subcode", err)
		r.path, err = parsePath(a.Path, known)
		wrong(".path", err)
		if a.Value != "" && a.Path == "" {
			wrong(".value", errors.New("needs a path to the element that holds it"))
		}
		if r.any() && i < len(answers)-1 {
			wrong("", errors.New("has no condition, so later entries cannot match: set code, subcode or path, or put it last"))
		}
		wrong(".class", exchange.CheckClass(r.class))
		rules = append(rules, r)
	}
	return rules, errors.Join(errs...)
}

func parsePattern(text string, known *scope) (*pattern, error) {
	if text == "" {
		return nil, nil
	}
	n, anySpace, err := parseName(text, known)
	if err != nil {
		return nil, err
	}
	if anySpace || n.space == soap12 {
		n.space = soap11 // for its spelling
	}
	return &pattern{name: canonical(n), anySpace: anySpace}, nil
}

func (p *pattern) matches(code name) bool {
	code = canonical(code)
	if !p.anySpace && code.space != p.name.space {
		return false
	}
	return code.local == p.name.local || strings.HasPrefix(code.local, p.name.local+".")
}

// any reports whether r has no condition.
func (r rule) any() bool { return r.code == nil && r.subcode == nil && r.path == nil }

// aboutResults reports whether r can match a message without a fault.
func (r rule) aboutResults() bool { return r.code == nil && r.subcode == nil }

// unmatched returns why a result is no success although it is no fault, or "": no entry
// of the configured answers matches it.
func (a *Adapter) unmatched(m *message) string {
	about := slices.DeleteFunc(slices.Clone(a.rules), func(r rule) bool { return !r.aboutResults() })
	switch {
	case len(about) > 0 && len(m.body.elements()) == 0:
		return "its soap:Body is empty"
	case slices.ContainsFunc(about, func(r rule) bool { return r.class == adapters.ClassDelivered || r.class == adapters.ClassAccepted }):
		return "no entry of answers matches it"
	}
	return ""
}

func (r rule) matches(m *message) bool {
	if !r.matchesCodes(m) {
		return false
	}
	if r.path == nil {
		return true
	}
	found := m.find(r.path)
	return len(found) > 0 && (r.value == "" || slices.Contains(found, r.value))
}

// undecided reports whether r might match m if m were complete: the element of its path
// has not been read.
func (r rule) undecided(m *message) bool {
	if r.path == nil || !r.matchesCodes(m) || len(m.find(r.path)) > 0 {
		return false
	}
	if m.fault != nil {
		return !m.fault.at.closed && strings.EqualFold(r.path[0].name.local, "detail")
	}
	success := []adapters.Class{adapters.ClassDelivered, adapters.ClassDuplicate, adapters.ClassAccepted}
	return !m.body.closed && !slices.Contains(success, r.class)
}

// matchesCodes reports whether m has the codes of r.
func (r rule) matchesCodes(m *message) bool {
	if (r.code != nil || r.subcode != nil) && m.fault == nil {
		return false
	}
	if r.code != nil && !r.code.matches(m.fault.codes[0]) {
		return false
	}
	return r.subcode == nil || slices.ContainsFunc(m.fault.codes[1:], r.subcode.matches)
}

// find follows p from inside soap:Fault, or from inside soap:Body if m is no fault.
func (m *message) find(p path) []string {
	if m.fault == nil {
		return p.find(m.body)
	}
	if len(p) > 0 && p[0].anySpace && strings.EqualFold(p[0].name.local, "detail") {
		p = slices.Clone(p)
		for _, spelling := range []string{"detail", "Detail"} {
			if m.fault.at.child(spelling) != nil {
				p[0].name.local = spelling
			}
		}
	}
	return p.find(m.fault.at)
}
