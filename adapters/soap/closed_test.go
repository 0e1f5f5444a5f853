package soap

import (
	"net/http"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// A result that the configuration does not know is no success.
func TestResultsThatNoEntryOfAnswersMatches(t *testing.T) {
	refused := Answer{Path: "R/error", Class: "permanent"}
	stored := Answer{Path: "R/result", Value: "STORED", Class: "delivered"}
	for name, tc := range map[string]struct {
		answers []Answer
		status  int
		body    string
		want    adapters.Class
		says    string
	}{
		"no answers":                     {nil, 200, "", adapters.ClassDelivered, ""},
		"an empty Body":                  {[]Answer{refused}, 200, "", adapters.ClassUnknown, "its soap:Body is empty"},
		"an empty Body, codes only":      {[]Answer{{Code: "Busy", Class: "transient"}}, 200, "", adapters.ClassDelivered, ""},
		"not refused":                    {[]Answer{refused}, 200, "<R/>", adapters.ClassDelivered, ""},
		"success is named":               {[]Answer{stored}, 200, "<R><result>STORED</result></R>", adapters.ClassDelivered, ""},
		"success is named, no match":     {[]Answer{stored}, 200, "<R><result>LATER</result></R>", adapters.ClassUnknown, "no entry of answers matches it"},
		"the rest":                       {[]Answer{stored, {Class: "permanent"}}, 200, "<R><result>NO</result></R>", adapters.ClassPermanent, "its body matches answers[1]"},
		"the rest, empty":                {[]Answer{stored, {Class: "permanent"}}, 200, "", adapters.ClassPermanent, ""},
		"the rest is no fault":           {[]Answer{stored, {Class: "permanent"}}, 200, "<S:Fault><faultcode>S:Server</faultcode></S:Fault>", adapters.ClassTransient, ""},
		"the rest is not about HTTP 500": {[]Answer{stored, {Class: "permanent"}}, 500, "<R/>", adapters.ClassTransient, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) { c.Answers = tc.answers }))
			ans := exchange.Answer{Status: tc.status, Header: http.Header{}, Body: []byte(enveloped(Version11, tc.body))}
			_, err := a.judge(exchange.Request{Method: "POST", Target: "clinic"}, ans, hearing(`{}`))
			if got := adapters.ClassOf(err); got != tc.want || got == adapters.ClassUnknown && !adapters.IsUnclear(err) {
				t.Errorf("class %s, want %s: %v", got, tc.want, err)
			}
			if tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("%v does not say %q", err, tc.says)
			}
		})
	}
}

func TestTheIDOfAResultCanBeRequired(t *testing.T) {
	for name, tc := range map[string]struct {
		require, known string
		want           adapters.Class
		warns          bool
	}{
		"by default a warning":  {"", "", adapters.ClassDelivered, true},
		"known":                 {"", "ext-7", adapters.ClassDelivered, false},
		"required":              {adapters.RequireID, "ext-7", adapters.ClassUnknown, true},
		"required, never known": {adapters.RequireID, "", adapters.ClassUnknown, true},
		"not required":          {adapters.RequireNothing, "", adapters.ClassDelivered, false},
	} {
		t.Run(name, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) { c.ExternalID, c.Require = "R/id", tc.require }))
			ans := exchange.Answer{Status: 200, Header: http.Header{}, Body: []byte(enveloped(Version11, "<R/>"))}
			msg := hearing(`{}`)
			msg.Ref.ExternalID = tc.known
			receipt, err := a.judge(exchange.Request{Method: "POST", Target: "clinic"}, ans, msg)
			if adapters.ClassOf(err) != tc.want || receipt.NoID != tc.warns {
				t.Errorf("class %s, no id %t: %v", adapters.ClassOf(err), receipt.NoID, err)
			}
		})
	}
}
