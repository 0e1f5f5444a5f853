package exchange

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/hms-mkt/lockstep/adapters"
)

// RuleOptions are the options that say what the answers of an HTTP API mean.
type RuleOptions struct {
	Field    string                 // before the names of the options in errors, such as `routes["a"].`; may be empty
	Protocol map[int]adapters.Class // exceptions of the protocol to the table of statuses
	Outcomes map[int]string         // exceptions of the configuration; they override those of the protocol
	Answers  []adapters.Answer
	Reason   string // JSON Pointer to a text that names nobody
	Require  string // adapters.RequireID, adapters.RequireNothing or empty
}

// Rules say what the answers of an HTTP API mean, by status and by body. The zero value
// is the default table.
type Rules struct {
	outcomes Outcomes
	answers  []answerRule
	reason   Pointer
	require  string
}

// answerRule is one of [adapters.Answer].
type answerRule struct {
	path   Pointer
	equals json.RawMessage // nil: any value
	status int             // 0: any
	class  adapters.Class
	reason Pointer
}

// ParseRules reads the options. Its error names every wrong entry.
func ParseRules(o RuleOptions) (Rules, error) {
	var (
		r    = Rules{require: o.Require}
		errs []error
		err  error
	)
	check := func(err error) {
		for _, e := range Flatten(err) {
			errs = append(errs, fmt.Errorf("%s%w", o.Field, e))
		}
	}
	r.outcomes, err = ParseOutcomes(o.Protocol, o.Outcomes)
	check(err)
	r.answers, err = parseAnswers(o.Answers)
	check(err)
	if r.reason, err = ParsePointer(o.Reason); err != nil {
		check(fmt.Errorf("reason: %w", err))
	}
	return r, errors.Join(errs...)
}

// CheckRequire checks the option require beside external_id.
func CheckRequire(require, externalID string) error {
	switch {
	case !slices.Contains([]string{"", adapters.RequireID, adapters.RequireNothing}, require):
		return fmt.Errorf("require: %q is not one of %s, %s", require, adapters.RequireID, adapters.RequireNothing)
	case require != "" && externalID == "":
		return errors.New("require: needs external_id, which says where the id is")
	}
	return nil
}

func parseAnswers(answers []adapters.Answer) (rules []answerRule, err error) {
	var errs []error
	for i, a := range answers {
		wrong := func(field string, err error) {
			if err != nil {
				errs = append(errs, fmt.Errorf("answers[%d]%s: %w", i, field, err))
			}
		}
		r := answerRule{equals: a.Equals, status: a.Status, class: adapters.Class(a.Class)}
		r.path, err = ParsePointer(a.Path)
		wrong(".path", err)
		r.reason, err = ParsePointer(a.Reason)
		wrong(".reason", err)
		if a.Equals != nil && a.Path == "" {
			wrong(".equals", errors.New("needs a path to the value"))
		}
		if trimmed := bytes.TrimSpace(a.Equals); len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[') {
			wrong(".equals", errors.New("is not a single value: write a text, a number, true, false or null"))
		}
		if a.Status != 0 && (a.Status < 200 || a.Status > 599) {
			wrong(".status", errors.New("is not a status from 200 to 599"))
		}
		if a.Path == "" && a.Status == 0 && i < len(answers)-1 {
			wrong("", errors.New("has no condition, so later entries cannot match: set path or status, or put it last"))
		}
		wrong(".class", CheckClass(r.class))
		rules = append(rules, r)
	}
	return rules, errors.Join(errs...)
}

// Flatten returns the errors that err joins, or err alone. nil has none.
func Flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// Judge turns the answer to req into the result of an attempt. The receipt always has
// its Code. The caller sets Ref.
func (r Rules) Judge(req Request, a Answer) (adapters.Receipt, error) {
	m := r.meaning(a)
	return Result(m.class, req, a, func() string {
		if m.why != "" {
			return m.why
		}
		for _, p := range []Pointer{m.reason, r.reason} {
			if text, ok := a.JSON().Text(p); ok {
				return req.RedactSecrets(text)
			}
		}
		return req.Reason(a)
	})
}

// Explains reports whether a refusal comes from the receiver itself, not from a gateway in
// front of it.
func (r Rules) Explains(a Answer) bool { return r.meaning(a).class != adapters.ClassUnexplained }

// meaning is what an answer means.
type meaning struct {
	class  adapters.Class
	why    string  // why a 2xx is no success, in our own words; may be empty
	reason Pointer // to the answer's reason; may be nil
}

func (r Rules) meaning(a Answer) meaning {
	var doc Document
	if len(r.answers) > 0 {
		doc = a.JSON()
	}
	named, compared := false, false // answers has an entry for a success of this status; one that needs the body
	for i, rule := range r.answers {
		if !rule.applies(a) {
			continue
		}
		if rule.matches(doc) {
			return meaning{class: rule.class, reason: rule.reason}
		}
		if !doc.settles(rule.path) {
			return meaning{class: adapters.ClassUnknown, why: fmt.Sprintf("its body ends before the value that answers[%d] needs", i)}
		}
		named = named || rule.class == adapters.ClassDelivered || rule.class == adapters.ClassAccepted
		compared = true
	}
	unknown := func(why string) meaning { return meaning{class: adapters.ClassUnknown, why: why} }
	_, configured := r.outcomes.overrides[a.Status]
	switch {
	case !a.OK() || configured:
	case a.IsPage():
		return unknown(fmt.Sprintf("an HTML page, which is not the answer of an API: check url, or set outcomes: {%d: delivered} if the receiver always answers so", a.Status))
	case compared && len(a.Body) == 0 && a.Cut == nil && !a.withoutBody():
		return unknown(fmt.Sprintf("its body is empty, so answers cannot be compared with it: set outcomes: {%d: delivered} if the receiver always answers so", a.Status))
	case compared && !doc.IsJSON() && !a.withoutBody():
		return unknown("its body is not JSON, so answers cannot be compared with it")
	case named && !a.withoutBody():
		return unknown("no entry of answers matches it")
	case a.Status == http.StatusMultiStatus:
		return unknown("the result is in its body: name it in answers")
	}
	return meaning{class: r.outcomes.Class(a)}
}

// withoutBody reports whether a has no body and needs none, by its status (RFC 9110,
// 15.3).
func (a Answer) withoutBody() bool {
	return len(a.Body) == 0 && a.Cut == nil &&
		slices.Contains([]int{http.StatusAccepted, http.StatusNoContent, http.StatusResetContent}, a.Status)
}

// IsPage reports whether the body is an HTML page, with any Content-Type.
func (a Answer) IsPage() bool {
	return page.Match(bytes.TrimPrefix(bytes.TrimSpace(a.Body), []byte("\xef\xbb\xbf")))
}

func (r answerRule) applies(a Answer) bool {
	if r.status != 0 {
		return r.status == a.Status
	}
	return r.path != nil || a.OK()
}

func (r answerRule) matches(doc Document) bool {
	if r.path == nil {
		return true
	}
	found := doc.Find(r.path)
	if r.equals == nil {
		return len(found) > 0
	}
	return slices.ContainsFunc(found, r.equal)
}

// equal compares a value of an answer with the configured one. Numbers are equal if
// their digits are, or their values: 1 and 1.0.
func (r answerRule) equal(v any) bool {
	var want any
	d := json.NewDecoder(bytes.NewReader(r.equals))
	d.UseNumber()
	if d.Decode(&want) != nil {
		return false
	}
	a, isNumber := v.(json.Number)
	b, alsoNumber := want.(json.Number)
	if isNumber && alsoNumber {
		return SameNumber(a, b)
	}
	switch v.(type) {
	case map[string]any, []any:
		return false
	}
	return v == want
}

// SameNumber reports whether two numbers have the same value: 1 and 1.0. Of numbers that
// float64 does not have exactly, the digits are compared.
func SameNumber(a, b json.Number) bool {
	if len(a) > maxDigits || len(b) > maxDigits {
		return a == b
	}
	x, errX := a.Float64()
	y, errY := b.Float64()
	return errX == nil && errY == nil && x == y
}

// maxDigits is the length of a number that float64 has exactly.
const maxDigits = 15

// WithoutID returns the result of an attempt that succeeded with receipt, although the
// answer lacks the receiver's id. known says whether an earlier answer had it, and where
// says where it was expected.
func (r Rules) WithoutID(req Request, a Answer, receipt adapters.Receipt, known bool, where string) (adapters.Receipt, error) {
	always := r.require == adapters.RequireID
	switch {
	case req.Method == http.MethodDelete, r.require == adapters.RequireNothing, known && !always:
		return receipt, nil
	case (receipt.Accepted || receipt.Duplicate) && !always:
		receipt.NoID = true
		return receipt, nil
	}
	return IDMissing(req, a, where)
}

// IDMissing returns the result for a success without the receiver's id, which is
// required.
func IDMissing(req Request, a Answer, where string) (adapters.Receipt, error) {
	receipt := adapters.Receipt{Code: a.Code(), NoID: true}
	text := fmt.Sprintf("%s %s: answered %s, but ", req.Method, req.Target, a.Code())
	if a.Cut != nil {
		return receipt, adapters.Unknown(fmt.Errorf("%sits body ended before the id: %w", text, a.Cut))
	}
	return receipt, adapters.Unclear(fmt.Errorf("%swithout the id that external_id names (%s)", text, where))
}
