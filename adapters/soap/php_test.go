package soap_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/soap"
)

// phpService is the counterpart that we did not write: PHP's SoapServer, which
// reads all requests and writes all answers of testdata/php/router.php.
type phpService struct {
	url    string
	dir    string // of the calendars' logs
	stderr string // a file
	alive  io.Closer
}

// startPHP starts the service once for all tests, and installs PHP first if it is
// missing. The service ends with its standard input, which ends with this process, even
// if that is killed.
var startPHP = sync.OnceValues(func() (*phpService, error) {
	ctx := context.Background()
	if out, err := exec.CommandContext(ctx, "../../internal/testtools/install.sh", "php-cli", "php-soap").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s (%w)", bytes.TrimSpace(out), err)
	}
	dir, err := os.MkdirTemp("", "lockstep-php-")
	if err != nil {
		return nil, err
	}
	s := &phpService{dir: dir, stderr: filepath.Join(dir, "stderr")}
	stderr, err := os.Create(s.stderr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = stderr.Close() }()
	cmd := exec.CommandContext(ctx, "sh", "-c", `"$@" & read -r _; kill $!; wait; rm -r "$CALENDARS"`, "sh",
		"php", "-d", "display_errors=stderr", "-S", "127.0.0.1:0", "testdata/php/router.php")
	cmd.Env = append(os.Environ(), "CALENDARS="+dir)
	cmd.Stderr = stderr
	if s.alive, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for range 6000 {
		said, err := os.ReadFile(s.stderr)
		if err != nil {
			return nil, err
		}
		if m := listening.FindSubmatch(said); m != nil {
			s.url = string(m[1])
			return s, nil
		}
		<-look.C
	}
	return nil, fmt.Errorf("php does not listen; it said:\n%s", s.said())
})

var (
	listening   = regexp.MustCompile(`\((http://[^)]+)\) started`)
	connections = regexp.MustCompile(`(?m)^.* (Accepted|Closing)\n`)
)

// said returns what PHP wrote to its standard error, except about its connections.
func (s *phpService) said() []byte {
	said, err := os.ReadFile(s.stderr)
	if err != nil {
		return []byte(err.Error())
	}
	return connections.ReplaceAll(said, nil)
}

// phpCourt is a calendar that only one test knows.
type phpCourt struct {
	url string
	log string
}

// phpCall is what SoapServer read out of a request.
type phpCall struct {
	ContentType    string  `json:"content_type"`
	SOAPAction     *string `json:"soap_action"`
	IdempotencyKey string  `json:"idempotency_key"`
	Agency         string
	MessageID      string `json:"message_id"`
	Action         string
	To             string
	Token          struct{ Form, Nonce, Created string }
	Expires        string
	Operation      string
	Parameters     phpParameters
	Result         string
	Status         int
}

type phpParameters struct {
	Reference, Start, Room, Status, Remarks string
	Party                                   []phpParty
}

type phpParty struct {
	Name string `json:"_"`
	Role string
}

// newPHPCourt returns a new calendar that behaves as said; see
// testdata/php/router.php.
func newPHPCourt(t *testing.T, behaviour string) *phpCourt {
	t.Helper()
	service, err := startPHP()
	if err != nil {
		t.Fatal(err)
	}
	name := rand.Text()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("php said:\n%s", service.said())
		}
	})
	return &phpCourt{url: service.url + "/" + name + "/" + behaviour, log: filepath.Join(service.dir, name+".jsonl")}
}

// calls returns what SoapServer has read so far.
func (c *phpCourt) calls(t *testing.T) []phpCall {
	t.Helper()
	log, err := os.ReadFile(c.log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var calls []phpCall
	for d := json.NewDecoder(bytes.NewReader(log)); d.More(); {
		var call phpCall
		if err := d.Decode(&call); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, call)
	}
	return calls
}

const phpPassword = "Grüße & <more>" // of router.php

// phpConfig is what an agency writes for the service.
func phpConfig(c *phpCourt, version string) soap.Config {
	return soap.Config{
		URL:        c.url,
		Version:    version,
		Namespaces: map[string]string{"cal": "urn:example:calendar"},
		Action:     "urn:example:calendar/NotifyHearing",
		Body: `
			<cal:NotifyHearing>
			  <cal:reference>{fields.case_reference}</cal:reference>
			  <cal:start>{fields.start_time}</cal:start>
			  <cal:room>{fields.courtroom}</cal:room>
			  <cal:status>{fields.status?}</cal:status>
			  <cal:remarks>{fields.remarks?}</cal:remarks>
			  <cal:party lockstep:each="fields.parties" role="{item.role}">{item.name}</cal:party>
			</cal:NotifyHearing>`,
		Header:     `<cal:Agency soap:mustUnderstand="1">{type}</cal:Agency>`,
		Addressing: &soap.Addressing{To: "urn:example:clinic"},
		Routes: map[string]soap.Route{"scheduling:cancelled": {
			Action: "urn:example:calendar/CancelHearing",
			Body:   `<cal:CancelHearing><cal:reference>{fields.case_reference}</cal:reference></cal:CancelHearing>`,
		}},
		ExternalID: "cal:NotifyHearingResponse/cal:entryId",
		Answers: []soap.Answer{
			{Code: "Client", Path: "detail/cal:CalendarFault/cal:retryable", Value: "true", Class: "transient"},
			{Path: "cal:NotifyHearingResponse/cal:result", Value: "DUPLICATE", Class: "duplicate"},
			{Path: "cal:CancelHearingResponse/cal:result", Value: "DUPLICATE", Class: "duplicate"},
		},
	}
}

func newPHPAdapter(t *testing.T, c soap.Config) *soap.Adapter {
	t.Helper()
	a, err := soap.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// events counts the messages, each of which has its own id.
var events atomic.Int64

// phpHearing is a message of a hearing with these fields and the required ones.
func phpHearing(t *testing.T, fields map[string]any) adapters.Message {
	t.Helper()
	all := map[string]any{"case_reference": "26-4711", "start_time": "2027-03-15T09:30:00-04:00", "courtroom": "3A", "parties": []any{}}
	maps.Copy(all, fields)
	body, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("0198f6a2-7d3e-4c1a-9b52-%012x", events.Add(1))
	return adapters.Message{ID: id, IdempotencyKey: id, Type: "scheduling:updated", Key: "hearing-7", Attempt: 1, Body: body}
}

// bothVersions runs a test with each version of SOAP.
func bothVersions(t *testing.T, test func(t *testing.T, version string)) {
	t.Helper()
	for _, version := range []string{soap.Version11, soap.Version12} {
		t.Run("SOAP "+version, func(t *testing.T) {
			t.Parallel()
			test(t, version)
		})
	}
}

func TestPHPReadsTheMappedFieldsExactly(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		text string
		noID bool // it is too long or unfit to be kept as an external id
	}{
		"plain":             {text: "Hearing"},
		"markup":            {text: `</cal:room><x a='b'>&amp;&#60;]]><![CDATA[<!-- <?php ?> "quoted"`},
		"placeholders":      {text: "{fields.courtroom} {item.name} %s $1"},
		"umlauts and emoji": {text: "Ärztekammer Zürich, Œuvre, Ελλάδα, 北京, 👩‍⚖️ \U0001F600"},
		"combining":         {text: "a\u0308 is not \u00e4, \u202eright to left, \ufeffmark"},
		"lines and tabs":    {text: " one\r\ntwo\rthree\n\tfour ", noID: true},
		"long":              {text: strings.Repeat("<Ü&😀>", 20_000), noID: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothVersions(t, func(t *testing.T, version string) {
				c, text := newPHPCourt(t, ""), tc.text
				msg := phpHearing(t, map[string]any{
					"case_reference": text, "courtroom": text, "remarks": text,
					"parties": []any{map[string]any{"name": text, "role": text}, map[string]any{"name": "N", "role": "witness"}},
				})
				receipt, err := newPHPAdapter(t, phpConfig(c, version)).Deliver(t.Context(), msg)
				if err != nil {
					t.Fatal(err)
				}
				if tc.noID {
					if receipt.Ref != nil {
						t.Errorf("the external id %.200q was kept", receipt.Ref.ExternalID)
					}
				} else if want := "entry of " + text; receipt.Ref == nil || receipt.Ref.ExternalID != want {
					t.Errorf("receipt %+v, want the external id %q", receipt, want)
				}
				want := phpParameters{
					Reference: text, Start: "2027-03-15T09:30:00-04:00", Room: text, Remarks: text,
					Party: []phpParty{{text, text}, {"N", "witness"}},
				}
				if diff := gocmp.Diff(want, onlyCall(t, c).Parameters); diff != "" {
					t.Errorf("PHP read (-want +got):\n%.2000s", diff)
				}
			})
		})
	}
}

func TestPHPReadsTheFrameOfAMessage(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version string) {
		for _, tc := range []struct{ event, operation string }{
			{"scheduling:updated", "NotifyHearing"},
			{"scheduling:cancelled", "CancelHearing"},
		} {
			c := newPHPCourt(t, "")
			msg := phpHearing(t, nil)
			msg.Type = tc.event
			if _, err := newPHPAdapter(t, phpConfig(c, version)).Deliver(t.Context(), msg); err != nil {
				t.Fatal(err)
			}
			got := onlyCall(t, c)
			action := "urn:example:calendar/" + tc.operation
			want := phpCall{
				ContentType: "text/xml; charset=utf-8", SOAPAction: new(`"` + action + `"`),
				IdempotencyKey: `"` + msg.ID + `"`,
				Agency:         tc.event, MessageID: "urn:uuid:" + msg.ID, Action: action, To: "urn:example:clinic",
				Operation: tc.operation, Parameters: got.Parameters, Result: "STORED", Status: 200,
			}
			if version == soap.Version12 {
				want.ContentType, want.SOAPAction = `application/soap+xml; charset=utf-8; action="`+action+`"`, nil
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("PHP read (-want +got):\n%s", diff)
			}
		}
	})
}

func TestPHPAnswersAreClassified(t *testing.T) {
	t.Parallel()
	badStart := map[string]any{"start_time": "tomorrow"}
	noRules := func(c *soap.Config) { c.Answers = nil }
	header := func(block string) func(*soap.Config) { return func(c *soap.Config) { c.Header = block } }
	for name, tc := range map[string]struct {
		behaviour    string
		edit         func(*soap.Config)
		fields       map[string]any
		want         adapters.Class
		code, code12 string // of the receipt; of SOAP 1.2 where it is not the same in that version's words
		text         string // in the error
	}{
		"stored":                           {want: adapters.ClassDelivered, code: "HTTP 200"},
		"stored, in Latin-1":               {behaviour: "charset=ISO-8859-1", want: adapters.ClassDelivered, code: "HTTP 200"},
		"stored, in UTF-16":                {behaviour: "charset=UTF-16", want: adapters.ClassDelivered, code: "HTTP 200"},
		"stored, in UTF-16 without a mark": {behaviour: "charset=UTF-16LE", want: adapters.ClassDelivered, code: "HTTP 200"},
		"stored, in Latin-9":               {behaviour: "charset=ISO-8859-15", want: adapters.ClassDelivered, code: "HTTP 200"},
		"stored, with a document type": {
			behaviour: "doctype=1",
			want:      adapters.ClassUnknown, code: "HTTP 200", text: "a DTD is not allowed",
		},

		"the client's mistake": {
			fields: badStart,
			want:   adapters.ClassPermanent, code: "HTTP 500 soap:Client", text: "the calendar refused the hearing",
		},
		"the client's mistake in a 200": {
			behaviour: "status=200", fields: badStart,
			want: adapters.ClassPermanent, code: "HTTP 200 soap:Client", text: "the calendar refused the hearing",
		},
		"the client's mistake in a 202": {
			behaviour: "status=202", fields: badStart,
			want: adapters.ClassPermanent, code: "HTTP 202 soap:Client",
		},
		"the client's mistake in a 401": {
			behaviour: "status=401", fields: badStart,
			want: adapters.ClassAuth, code: "HTTP 401 soap:Client",
		},
		"a fault in Latin-1": {
			behaviour: "fault=Client&charset=ISO-8859-1",
			want:      adapters.ClassPermanent, code: "HTTP 500 soap:Client", text: "für alle",
		},
		"a fault in UTF-16": {
			behaviour: "fault=Client&charset=UTF-16",
			want:      adapters.ClassPermanent, code: "HTTP 500 soap:Client", text: "für alle",
		},

		"the server's trouble": {
			behaviour: "fault=Server",
			want:      adapters.ClassTransient, code: "HTTP 500 soap:Server", text: "für alle",
		},
		"the server's trouble in a 200": {
			behaviour: "fault=Server&status=200",
			want:      adapters.ClassTransient, code: "HTTP 200 soap:Server",
		},
		"the server's trouble in a 400": {
			behaviour: "fault=Server&status=400",
			want:      adapters.ClassTransient, code: "HTTP 400 soap:Server",
		},
		"the server's trouble in a 429": {
			behaviour: "fault=Server&status=429",
			want:      adapters.ClassThrottled, code: "HTTP 429 soap:Server",
		},
		"a code of the service's own": {
			behaviour: "fault=OutOfOrder",
			want:      adapters.ClassTransient, code: "HTTP 500 cal:OutOfOrder",
		},
		"an operation that is not there": { // PHP does not blame the client
			edit: func(c *soap.Config) { c.Body = "<cal:Reschedule/>" },
			want: adapters.ClassTransient, code: "HTTP 500 soap:Server", code12: "HTTP 500 ProcedureNotPresent",
		},
		"no SOAP": {behaviour: "down=1", want: adapters.ClassTransient, code: "HTTP 503", text: "HTTP 503"},

		"busy":                     {behaviour: "busy=1", want: adapters.ClassTransient, code: "HTTP 500 soap:Client"},
		"busy in a 200":            {behaviour: "busy=1&status=200", want: adapters.ClassTransient, code: "HTTP 200 soap:Client"},
		"busy, but no rule for it": {behaviour: "busy=1", edit: noRules, want: adapters.ClassPermanent, code: "HTTP 500 soap:Client"},

		"a header that is not understood": {
			edit: header(`<cal:Sealed soap:mustUnderstand="1">yes</cal:Sealed>`),
			want: adapters.ClassPermanent, code: "HTTP 500 soap:MustUnderstand", text: "Header not understood",
		},
		"a header that need not be": {
			edit: header(`<cal:Sealed>yes</cal:Sealed>`),
			want: adapters.ClassDelivered, code: "HTTP 200",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bothVersions(t, func(t *testing.T, version string) {
				c := newPHPCourt(t, tc.behaviour)
				config := phpConfig(c, version)
				if tc.edit != nil {
					tc.edit(&config)
				}
				fields := map[string]any{"case_reference": "Zürich-7"}
				maps.Copy(fields, tc.fields)
				receipt, err := newPHPAdapter(t, config).Deliver(t.Context(), phpHearing(t, fields))
				wantClass(t, err, tc.want, tc.text)
				code := tc.code
				if version == soap.Version12 {
					code = cmp.Or(tc.code12, strings.NewReplacer("Client", "Sender", "Server", "Receiver").Replace(tc.code))
				}
				if receipt.Code != code {
					t.Errorf("code %q, want %q", receipt.Code, code)
				}
				if err == nil && (receipt.Ref == nil || receipt.Ref.ExternalID != "entry of Zürich-7") {
					t.Errorf("receipt %+v, want the external id", receipt)
				}
				if n := len(c.calls(t)); n != 1 {
					t.Errorf("PHP had %d calls, want 1", n)
				}
			})
		})
	}
}

func TestPHPIsBusyAndTakesTheNextAttempt(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version string) {
		c := newPHPCourt(t, "busy=2")
		a := newPHPAdapter(t, phpConfig(c, version))
		msg := phpHearing(t, nil)
		for attempt, want := range []adapters.Class{adapters.ClassTransient, adapters.ClassTransient, adapters.ClassDelivered} {
			msg.Attempt = attempt + 1
			_, err := a.Deliver(t.Context(), msg)
			wantClass(t, err, want, "")
		}
	})
}

func TestPHPKnowsAMessageAgain(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version string) {
		c := newPHPCourt(t, "")
		a := newPHPAdapter(t, phpConfig(c, version))
		msg := phpHearing(t, nil)
		for attempt, duplicate := range []bool{false, true, true} {
			msg.Attempt = attempt + 1
			receipt, err := a.Deliver(t.Context(), msg)
			if err != nil || receipt.Duplicate != duplicate {
				t.Errorf("attempt %d: %+v, %v; want duplicate %t", msg.Attempt, receipt, err, duplicate)
			}
		}
		if receipt, err := a.Deliver(t.Context(), phpHearing(t, nil)); err != nil || receipt.Duplicate {
			t.Errorf("another event: %+v, %v; want it stored", receipt, err)
		}
	})
}

func TestPHPTakesAUsernameToken(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"text", "digest"} {
		for name, tc := range map[string]struct {
			behaviour string
			edit      func(*soap.Security)
			want      adapters.Class
			text      string
		}{
			"right":             {want: adapters.ClassDelivered},
			"with a timestamp":  {edit: func(s *soap.Security) { s.Timestamp = time.Minute }, want: adapters.ClassDelivered},
			"wrong password":    {edit: func(s *soap.Security) { s.Password = "guess" }, want: adapters.ClassAuth, text: "FailedAuthentication"},
			"wrong user":        {edit: func(s *soap.Security) { s.Username = "clinic" }, want: adapters.ClassAuth, text: "FailedAuthentication"},
			"in a 200":          {behaviour: "&status=200", edit: func(s *soap.Security) { s.Password = "guess" }, want: adapters.ClassAuth, text: "FailedAuthentication"},
			"none":              {edit: func(s *soap.Security) { *s = soap.Security{} }, want: adapters.ClassAuth, text: "InvalidSecurity"},
			"clock behind":      {behaviour: "&clock=3600", want: adapters.ClassAuth, text: "clock"},
			"clock ahead":       {behaviour: "&clock=-3600", want: adapters.ClassAuth, text: "clock"},
			"timestamp expired": {behaviour: "&clock=120", edit: func(s *soap.Security) { s.Timestamp = time.Minute }, want: adapters.ClassAuth, text: "clock"},
		} {
			t.Run(form+", "+name, func(t *testing.T) {
				t.Parallel()
				bothVersions(t, func(t *testing.T, version string) {
					c := newPHPCourt(t, "security="+form+tc.behaviour)
					config := phpConfig(c, version)
					config.Security = phpSecurity(form)
					if tc.edit != nil {
						tc.edit(&config.Security)
					}
					_, err := newPHPAdapter(t, config).Deliver(t.Context(), phpHearing(t, nil))
					wantClass(t, err, tc.want, tc.text)
					if err != nil && strings.Contains(err.Error(), phpPassword) {
						t.Errorf("the error gives the password away: %v", err)
					}
				})
			})
		}
	}
}

func TestPHPGetsAFreshTokenAndTheSameMessageIDPerAttempt(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"text", "digest"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			bothVersions(t, func(t *testing.T, version string) {
				c := newPHPCourt(t, "busy=2&security="+form) // it refuses a nonce that it has seen
				config := phpConfig(c, version)
				config.Security = phpSecurity(form)
				config.Security.Timestamp = time.Minute
				a := newPHPAdapter(t, config)
				msg := phpHearing(t, nil)
				for attempt, want := range []adapters.Class{adapters.ClassTransient, adapters.ClassTransient, adapters.ClassDelivered} {
					msg.Attempt = attempt + 1
					_, err := a.Deliver(t.Context(), msg)
					wantClass(t, err, want, "")
				}
				nonces := map[string]bool{}
				for _, call := range c.calls(t) {
					nonces[call.Token.Nonce] = true
					if call.MessageID != "urn:uuid:"+msg.ID {
						t.Errorf("message id %q, want the event's", call.MessageID)
					}
					created, err := time.Parse(time.RFC3339, call.Token.Created)
					if age := time.Since(created); err != nil || age < -time.Second || age > time.Minute {
						t.Errorf("created %q, want now", call.Token.Created)
					}
					expires, err := time.Parse(time.RFC3339, call.Expires)
					if err != nil || expires.Sub(created).Round(time.Second) != time.Minute {
						t.Errorf("expires %q, want a minute after %q", call.Expires, call.Token.Created)
					}
				}
				if len(nonces) != 3 {
					t.Errorf("nonces %v, want a new one per attempt", nonces)
				}
			})
		})
	}
}

// A proxy that sends every request twice shows that PHP checks nonces.
func TestPHPRefusesTheSameTokenTwice(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"text", "digest"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			bothVersions(t, func(t *testing.T, version string) {
				c := newPHPCourt(t, "security="+form)
				target, err := url.Parse(c.url)
				if err != nil {
					t.Fatal(err)
				}
				proxy := httptest.NewServer(&httputil.ReverseProxy{
					Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL = target },
					Transport: twice{},
				})
				t.Cleanup(proxy.Close)
				config := phpConfig(c, version)
				config.URL = proxy.URL
				config.Security = phpSecurity(form)
				_, err = newPHPAdapter(t, config).Deliver(t.Context(), phpHearing(t, nil))
				wantClass(t, err, adapters.ClassAuth, "wsse:InvalidSecurityToken: the nonce was used before")
				if n := len(c.calls(t)); n != 2 {
					t.Errorf("PHP had %d calls, want 2", n)
				}
			})
		})
	}
}

// twice sends every request twice and returns the second answer.
type twice struct{}

func (twice) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	first, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	_ = first.Body.Close()
	r.Body = io.NopCloser(bytes.NewReader(body))
	return http.DefaultTransport.RoundTrip(r)
}

func phpSecurity(form string) soap.Security {
	return soap.Security{Kind: soap.UsernameToken, Username: "agency", Password: phpPassword, PasswordType: form}
}

// wantClass checks the class of an error, and that the error says text.
func wantClass(t *testing.T, err error, want adapters.Class, text string) {
	t.Helper()
	if got := adapters.ClassOf(err); got != want {
		t.Errorf("class %s, want %s: %v", got, want, err)
	}
	if err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("the error does not say %q: %v", text, err)
	}
}

// onlyCall returns the one call that was made.
func onlyCall(t *testing.T, c *phpCourt) phpCall {
	t.Helper()
	calls := c.calls(t)
	if len(calls) != 1 {
		t.Fatalf("%d calls, want 1", len(calls))
	}
	return calls[0]
}
