package exchange

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

func rules(t *testing.T, answers ...adapters.Answer) Rules {
	t.Helper()
	r, err := ParseRules(RuleOptions{Answers: answers})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The body of an answer decides where the configuration says how.
func TestAnswersByTheirBodies(t *testing.T) {
	refused := adapters.Answer{Path: "/success", Equals: []byte("false"), Class: "permanent", Reason: "/why"}
	done := adapters.Answer{Path: "/success", Equals: []byte("true"), Class: "delivered"}
	double := adapters.Answer{Path: "/errors/*/code", Equals: []byte(`"DUP"`), Class: "duplicate"}
	for name, tc := range map[string]struct {
		answers []adapters.Answer
		status  int
		body    string
		want    adapters.Class
	}{
		"refused in a 200":            {[]adapters.Answer{refused}, 200, `{"success":false,"why":"closed"}`, adapters.ClassPermanent},
		"a mark before it":            {[]adapters.Answer{refused}, 200, "\xef\xbb\xbf" + `{"success":false}`, adapters.ClassPermanent},
		"not refused":                 {[]adapters.Answer{refused}, 200, `{"success":true}`, adapters.ClassDelivered},
		"no such member":              {[]adapters.Answer{refused}, 200, `{}`, adapters.ClassDelivered},
		"another type":                {[]adapters.Answer{refused}, 200, `{"success":"false"}`, adapters.ClassDelivered},
		"the first that matches":      {[]adapters.Answer{done, refused}, 200, `{"success":false}`, adapters.ClassPermanent},
		"success is named":            {[]adapters.Answer{done}, 200, `{"success":true}`, adapters.ClassDelivered},
		"success is named, no match":  {[]adapters.Answer{done}, 200, `{"success":"yes"}`, adapters.ClassUnknown},
		"success is named, no body":   {[]adapters.Answer{done}, 204, ``, adapters.ClassDelivered},
		"success is named, empty 200": {[]adapters.Answer{done}, 200, ``, adapters.ClassUnknown},
		"success of another status":   {[]adapters.Answer{{Status: 201, Path: "/id", Class: "delivered"}}, 200, `{}`, adapters.ClassDelivered},
		"no JSON":                     {[]adapters.Answer{refused}, 200, `OK`, adapters.ClassUnknown},
		"empty":                       {[]adapters.Answer{refused}, 200, ``, adapters.ClassUnknown},
		"empty and accepted":          {[]adapters.Answer{refused}, 202, ``, adapters.ClassAccepted},
		"any of a list":               {[]adapters.Answer{double}, 409, `{"errors":[{"code":"X"},{"code":"DUP"}]}`, adapters.ClassDuplicate},
		"none of a list":              {[]adapters.Answer{double}, 409, `{"errors":[{"code":"X"}]}`, adapters.ClassConflict},
		"any member":                  {[]adapters.Answer{{Path: "/*/status", Equals: []byte("409"), Class: "duplicate"}}, 200, `{"a":{"status":409.0}}`, adapters.ClassDuplicate},
		"a number of many digits":     {[]adapters.Answer{{Path: "/n", Equals: []byte("90071992547409931"), Class: "duplicate"}}, 200, `{"n":90071992547409930}`, adapters.ClassDelivered},
		"null is a value":             {[]adapters.Answer{{Path: "/error", Equals: []byte("null"), Class: "delivered"}}, 200, `{"error":null}`, adapters.ClassDelivered},
		"it must exist":               {[]adapters.Answer{{Path: "/error", Class: "permanent"}}, 200, `{"error":null}`, adapters.ClassPermanent},
		"by status":                   {[]adapters.Answer{{Status: 418, Class: "duplicate"}}, 418, ``, adapters.ClassDuplicate},
		"the rest":                    {[]adapters.Answer{done, {Class: "permanent"}}, 201, `{"success":0}`, adapters.ClassPermanent},
		"the rest is no failure":      {[]adapters.Answer{done, {Class: "permanent"}}, 500, `{}`, adapters.ClassTransient},
		"multi-status":                {nil, 207, `{"results":[{"status":201}]}`, adapters.ClassUnknown},
		"multi-status that is read":   {[]adapters.Answer{{Status: 207, Path: "/results/*/status", Equals: []byte("201"), Class: "delivered"}}, 207, `{"results":[{"status":201}]}`, adapters.ClassDelivered},
		"multi-status with an error":  {[]adapters.Answer{{Status: 207, Path: "/results/*/status", Equals: []byte("201"), Class: "delivered"}}, 207, `{"results":[{"status":409}]}`, adapters.ClassUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rules(t, tc.answers...).Judge(Request{Method: "POST", Target: "court"}, Answer{Status: tc.status, Body: []byte(tc.body)})
			got := adapters.ClassOf(err)
			if receipt, _ := rules(t, tc.answers...).Judge(Request{}, Answer{Status: tc.status, Body: []byte(tc.body)}); receipt.Duplicate {
				got = adapters.ClassDuplicate
			} else if receipt.Accepted {
				got = adapters.ClassAccepted
			}
			if got != tc.want || got == adapters.ClassUnknown && !adapters.IsUnclear(err) {
				t.Errorf("class %s, want %s: %v", got, tc.want, err)
			}
		})
	}
}

// A 201 with its Location and no body cannot be compared, unless outcomes has it.
func TestAnEmptySuccessNamesItsSetting(t *testing.T) {
	options := RuleOptions{Answers: []adapters.Answer{{Path: "/success", Equals: []byte("false"), Class: "permanent"}}}
	for _, configured := range []bool{false, true} {
		if configured {
			options.Outcomes = map[int]string{201: "delivered"}
		}
		r, err := ParseRules(options)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Judge(Request{Method: "POST", Target: "court"}, Answer{Status: 201})
		if names := err != nil && strings.Contains(err.Error(), "its body is empty") && strings.Contains(err.Error(), "set outcomes: {201: delivered}"); names == configured {
			t.Errorf("configured %t: got %v", configured, err)
		}
	}
}

// A login page with status 200 says nothing about the message. It may come from a gateway.
func TestPagesAreNoSuccess(t *testing.T) {
	for name, body := range map[string]string{
		"HTML": "<!DOCTYPE html>\n<title>Sign in</title>", "a mark before it": "\xef\xbb\xbf<html>", "XHTML": `<?xml version="1.0"?><html xmlns="x"/>`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Rules{}.Judge(Request{Method: "POST", Target: "court"}, Answer{Status: 200, Body: []byte(body)})
			if adapters.ClassOf(err) != adapters.ClassUnexplained || !adapters.IsUnknown(err) || !strings.Contains(err.Error(), "an HTML page") || !strings.Contains(err.Error(), "outcomes: {200: delivered} if") {
				t.Errorf("class %s: %v", adapters.ClassOf(err), err)
			}
		})
	}
	configured, err := ParseRules(RuleOptions{Outcomes: map[int]string{200: "delivered"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := configured.Judge(Request{}, Answer{Status: 200, Body: []byte("<html>")}); err != nil {
		t.Errorf("outcomes do not decide: %v", err)
	}
}

// An answer that was cut is judged only as far as it was read.
func TestCutAnswersAreJudgedByWhatIsThere(t *testing.T) {
	r := rules(t, adapters.Answer{Path: "/status", Equals: []byte("1"), Class: "permanent"}, adapters.Answer{Path: "/done", Equals: []byte("true"), Class: "delivered"})
	for body, want := range map[string]adapters.Class{
		`{"status":1,"do`:                   adapters.ClassPermanent,
		`{"status":1`:                       adapters.ClassUnknown, // or 12
		`{"done":true,"sta`:                 adapters.ClassUnknown,
		`{"status":0,"do`:                   adapters.ClassUnknown,
		`{"status":0,"done":true,"copy":"`:  adapters.ClassDelivered,
		`{"status":0,"done":false,"copy":"`: adapters.ClassUnknown, // no entry matches
	} {
		t.Run(body, func(t *testing.T) {
			_, err := r.Judge(Request{}, Answer{Status: 200, Body: []byte(body), Partial: true, Cut: errors.New("the connection was closed")})
			if got := adapters.ClassOf(err); got != want || adapters.IsUnclear(err) {
				t.Errorf("class %s, want %s: %v", got, want, err)
			}
		})
	}
}

// An answer longer than what is read of it is judged by values that are in what was read. A
// list may go on after that.
func TestLongAnswersAreJudgedByTheirBeginning(t *testing.T) {
	refused := adapters.Answer{Path: "/success", Equals: []byte("false"), Class: "permanent"}
	inList := adapters.Answer{Path: "/errors/*/code", Equals: []byte("7"), Class: "permanent"}
	for body, want := range map[string]adapters.Class{
		`{"success":true,"errors":[],"copy":["`:        adapters.ClassDelivered,
		`{"copy":{"success":true,"more":"`:             adapters.ClassUnknown,
		`{"success":true,"errors":[{"code":1},{"code"`: adapters.ClassUnknown,
	} {
		answers := []adapters.Answer{refused}
		if strings.Contains(body, `{"code"`) {
			answers = append(answers, inList)
		}
		_, err := rules(t, answers...).Judge(Request{}, Answer{Status: 200, Body: []byte(body), Partial: true})
		if got := adapters.ClassOf(err); got != want {
			t.Errorf("%s: class %s, want %s: %v", body, got, want, err)
		}
	}
}

// The operator says where a text is that may be shown.
func TestConfiguredReasons(t *testing.T) {
	r, err := ParseRules(RuleOptions{
		Answers: []adapters.Answer{{Path: "/ok", Equals: []byte("false"), Class: "permanent", Reason: "/problems/*/text"}}, Reason: "/note",
	})
	if err != nil {
		t.Fatal(err)
	}
	req := Request{
		Method: "POST", Target: "court", Payload: []byte(`{"room":"3A-West"}`), Header: http.Header{"Authorization": {"Bearer tok-4711-secret"}},
	}
	for body, want := range map[string]string{
		`{"ok":false,"problems":[{"text":"room 3A-West is closed"}]}`: "room 3A-West is closed",
		`{"ok":false,"note":"see 4711"}`:                              "see 4711",
		`{"ok":false,"problems":[{"text":"bad tok-4711-secret"}]}`:    "(hidden, because it repeats what was sent)",
	} {
		_, err := r.Judge(req, Answer{Status: 200, Body: []byte(body)})
		if want := fmt.Sprintf("POST court: answered HTTP 200: %s", want); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}
